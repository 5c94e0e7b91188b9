"""``fastmask::decode_keypoints`` in ONNX's standard operators, without a loop: a fixed number of samples is computed.

Of a heatmap resized to its box, these are two samples a pixel, which are all of a small box's, and those of the CELLS
cells with the highest bounds (kernels/fallback/keypoints.py explains them, in one axis after the other; here they are
the Bernstein coefficients of both). So the maximum is found where no more cells can hold it, and elsewhere the best of
what was computed.
Source: https://onnx.ai/onnx/operators/ (TopK, GatherElements), opset 18.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from fastmask.export.onnx_ops import LOWEST, Value, columns, constant, count_pixels, length, op
from fastmask.kernels.keypoints import decode_keypoints_op

CELLS = 16
GRID = 2  # samples a pixel
MOST_PIXELS = 4096  # of a box's side: of a larger one a cell would have too many samples
NOWHERE = np.array(2**30, np.int32)  # above any place; OpenVINO chooses in float32, which holds it exactly


class Axis(NamedTuple):
    """How samples lie along an axis of n pixels; see fallback/keypoints.py."""

    pixels: int
    samples: Value  # [N, 1] whole numbers
    scale: Value  # [N, 1]
    first: Value  # [N, n + 2]
    numbers: Value  # [S] 0, 1, ... of as many samples as a cell can have


class Samples(NamedTuple):
    """Samples of heatmaps and where they are."""

    value: Value  # [N, K, ..., S, T]
    place: Value  # int32, counted in rows
    inside: Value  # bool
    axes: list[int]  # from the third on


def decode_keypoints(heatmaps: Value, boxes: Value, height: Value | int, width: Value | int) -> tuple[Value, Value]:
    """Boxes are known to be finite and in an image of (height, width)."""
    if any(isinstance(side, int) and side > MOST_PIXELS for side in (height, width)):
        raise ValueError(
            f"fastmask::decode_keypoints must have boxes of at most {MOST_PIXELS} pixels to be exported, got "
            f"{height} x {width}"
        )
    maps, boxes = (op.Cast(values, to=TensorProto.FLOAT) for values in (heatmaps, boxes))
    low = columns(boxes, 0, 2)
    sides = op.Max(op.Sub(columns(boxes, 2, 4), low), constant(1.0))  # [N, 2] (width, height)
    rows = lay_samples(heatmaps.shape[2], columns(sides, 1, 2), height)
    across = lay_samples(heatmaps.shape[3], columns(sides, 0, 1), width)
    padded = maps
    for dim, pixels in ((2, rows.pixels), (3, across.pixels)):  # the border twice more
        padded = op.Gather(padded, constant(np.arange(-2, pixels + 2).clip(0, pixels - 1)), axis=dim)
    value, index = find_largest(sample_grid(padded, rows, across))  # [N, K]
    other, other_index = find_largest(sample_cells(padded, heatmaps.shape[1], rows, across))
    best, nowhere = op.Max(value, other), constant(NOWHERE)  # [N, K]
    index = op.Min(
        op.Where(op.Equal(value, best), index, nowhere), op.Where(op.Equal(other, best), other_index, nowhere)
    )
    per_row = op.Cast(across.samples, to=TensorProto.INT32)
    row = op.Div(index, per_row)
    column = op.Sub(index, op.Mul(row, per_row))
    places: list[Value] = []
    for place, (axis, whole) in enumerate(((across, column), (rows, row))):
        center = op.Add(op.Cast(whole, to=TensorProto.FLOAT), constant(0.5))
        correction = op.Div(columns(sides, place, place + 1), axis.samples)
        places.append(op.Add(op.Mul(center, correction), columns(low, place, place + 1)))
    ones = op.Add(op.Mul(places[0], constant(0.0)), constant(1.0))
    return op.Concat(*(op.Unsqueeze(values, constant([2])) for values in (*places, ones)), axis=2), best


def lay_samples(pixels: int, side: Value, limit: Value | int) -> Axis:
    """So many pixels resized to a side [N, 1], which is at most the limit."""
    bound = op.Cast(length(limit), to=TensorProto.FLOAT)
    samples = op.Min(op.Ceil(side), bound)
    scale = op.Div(constant(float(pixels)), samples)
    cell = constant(np.arange(-1, pixels + 1, dtype=np.float32))
    guess = op.Sub(op.Ceil(op.Sub(op.Div(op.Add(cell, constant(0.5)), scale), constant(0.5))), constant(1.0))
    first = guess
    for i in (0.0, 1.0):
        below = op.Less(op.Floor(locate(op.Add(guess, constant(i)), scale)), cell)
        first = op.Add(first, op.Cast(below, to=TensorProto.FLOAT))
    last = constant(np.arange(pixels + 2) == pixels + 1)
    first = op.Where(last, samples, op.Max(op.Min(first, samples), constant(0.0)))
    if isinstance(limit, int):
        return Axis(pixels, samples, scale, first, constant(np.arange(-(-limit // pixels) + 1, dtype=np.float32)))
    most = op.Add(op.Div(op.Add(length(limit), constant([pixels - 1])), constant([pixels])), constant([1]))
    return Axis(pixels, samples, scale, first, count_pixels(op.Squeeze(most)))


def locate(index: Value, scale: Value) -> Value:
    return op.Sub(op.Mul(scale, op.Add(index, constant(0.5))), constant(0.5))


def find_largest(samples: Samples) -> tuple[Value, Value]:
    """The largest sample of each heatmap and the first's index, both [N, K]."""
    axes, value = constant(samples.axes), op.Where(samples.inside, samples.value, constant(LOWEST))
    best = op.ReduceMax(value, axes, keepdims=1)
    place = op.Where(op.And(samples.inside, op.Equal(value, best)), samples.place, constant(NOWHERE))
    return op.Squeeze(best, axes), op.ReduceMin(place, axes, keepdims=0)


def sample_grid(padded: Value, rows: Axis, across: Axis) -> Samples:
    """The first samples of each axis, as matrix products with each sample's weights of all pixels."""
    indices, inside, weights = [], [], []
    for axis in (rows, across):
        index = constant(np.arange(GRID * axis.pixels, dtype=np.float32))
        place = op.Unsqueeze(locate(index, axis.scale), constant([1, 3]))  # [N, 1, S, 1]
        away = op.Abs(op.Sub(place, constant(np.arange(-2, axis.pixels + 2, dtype=np.float32))))
        far = op.Where(op.Less(away, constant(2.0)), weigh_far(away), constant(0.0))
        weights.append(op.Where(op.Less(away, constant(1.0)), weigh_near(away), far))  # [N, 1, S, n + 4]
        indices.append(index)
        inside.append(op.Unsqueeze(op.Less(index, axis.samples), constant([1])))  # [N, 1, S]
    value = op.MatMul(op.MatMul(weights[0], padded), op.Transpose(weights[1], perm=[0, 1, 3, 2]))
    there = op.And(op.Unsqueeze(inside[0], constant([3])), op.Unsqueeze(inside[1], constant([2])))
    row, column = (op.Unsqueeze(index, constant([0, 1])) for index in indices)
    return Samples(value, number_samples(row, column, across, 3), there, [2, 3])


def sample_cells(padded: Value, points: int, rows: Axis, across: Axis) -> Samples:
    """The samples of the cells with the highest bounds."""
    sampled = [
        op.Greater(columns(axis.first, 1, axis.pixels + 2), columns(axis.first, 0, axis.pixels + 1))
        for axis in (rows, across)
    ]
    there = op.And(op.Unsqueeze(sampled[0], constant([1, 3])), op.Unsqueeze(sampled[1], constant([1, 2])))
    bounds = op.Where(there, bound_cells(padded, rows, across), constant(LOWEST))
    per_row = across.pixels + 1
    most = min(CELLS, (rows.pixels + 1) * per_row)
    _, cells = op.TopK(
        op.Reshape(bounds, constant([-1, points, (rows.pixels + 1) * per_row])), constant([most])
    )  # [N, K, M]
    row = op.Div(cells, constant(per_row))
    cell = row, op.Sub(cells, op.Mul(row, constant(per_row)))
    corner = op.Add(op.Mul(cell[0], constant(across.pixels + 4)), cell[1])
    near = np.add.outer(np.arange(4) * (across.pixels + 4), np.arange(4)).ravel()
    where = op.Reshape(op.Add(op.Unsqueeze(corner, constant([3])), constant(near)), constant([-1, points, most * 16]))
    flat = op.Reshape(padded, constant([-1, points, (rows.pixels + 4) * (across.pixels + 4)]))
    taps = op.GatherElements(flat, where, axis=2)
    taps = op.Reshape(taps, constant([-1, points, most, 4, 4]))
    indices, inside, weights = [], [], []
    for axis, own in ((rows, cell[0]), (across, cell[1])):
        flat = op.Reshape(own, constant([-1, points * most]))
        ends = (op.GatherElements(axis.first, op.Add(flat, constant(i)), axis=1) for i in (0, 1))
        start, end = (op.Reshape(each, constant([-1, points, most, 1])) for each in ends)
        index = op.Add(start, axis.numbers)  # [N, K, M, S]
        place = locate(index, op.Unsqueeze(axis.scale, constant([2, 3])))
        before = op.Sub(op.Cast(own, to=TensorProto.FLOAT), constant(1.0))
        part = op.Sub(place, op.Unsqueeze(before, constant([3])))
        rest = op.Sub(constant(1.0), part)
        four = (
            weigh_far(op.Add(part, constant(1.0))),
            weigh_near(part),
            weigh_near(rest),
            weigh_far(op.Add(rest, constant(1.0))),
        )
        weights.append(op.Concat(*(op.Unsqueeze(each, constant([4])) for each in four), axis=4))
        indices.append(index)
        inside.append(op.Less(index, end))
    value = op.MatMul(op.MatMul(weights[0], taps), op.Transpose(weights[1], perm=[0, 1, 2, 4, 3]))
    there = op.And(op.Unsqueeze(inside[0], constant([4])), op.Unsqueeze(inside[1], constant([3])))
    return Samples(value, number_samples(indices[0], indices[1], across, 4), there, [2, 3, 4])


def number_samples(row: Value, column: Value, across: Axis, rank: int) -> Value:
    """Index of samples, counted in rows, of rows [..., S] and columns [..., T], of a rank -> int32 [..., S, T]."""
    per_row = op.Cast(across.samples, to=TensorProto.INT32)
    per_row = op.Unsqueeze(per_row, constant(list(range(2, rank + 1))))
    row, column = (op.Cast(each, to=TensorProto.INT32) for each in (row, column))
    return op.Add(op.Mul(op.Unsqueeze(row, constant([rank])), per_row), op.Unsqueeze(column, constant([rank - 1])))


def weigh_near(away: Value) -> Value:
    """Cubic convolution's weight of a pixel at most one away."""
    inner = op.Sub(op.Mul(away, constant(1.25)), constant(2.25))
    return op.Add(op.Mul(op.Mul(inner, away), away), constant(1.0))


def weigh_far(away: Value) -> Value:
    """The same of a pixel between one and two away."""
    inner = op.Add(op.Mul(away, constant(-0.75)), constant(3.75))
    return op.Add(op.Mul(op.Sub(op.Mul(inner, away), constant(6.0)), away), constant(3.0))


def bound_cells(padded: Value, rows: Axis, across: Axis) -> Value:
    """The largest Bernstein coefficient of each cell [N, K, h + 1, w + 1]."""
    values = [padded]
    for axis, pixels in ((3, across.pixels), (2, rows.pixels)):
        values = [each for value in values for each in find_coefficients(value, pixels, axis)]
    return op.Max(*values)


def find_coefficients(values: Value, pixels: int, axis: int) -> list[Value]:
    """The four Bernstein coefficients of a cubic through each four neighbors along an axis."""
    before, start, end, after = (take(values, i, pixels + 1, axis) for i in range(4))
    quarter = constant(0.25)
    second = op.Add(start, op.Mul(op.Sub(end, before), quarter))
    return [start, second, op.Sub(end, op.Mul(op.Sub(after, start), quarter)), end]


def take(values: Value, first: int, size: int, axis: int) -> Value:
    """Part of an axis, not by Slice; see onnx_ops.columns."""
    return op.Gather(values, constant(np.arange(first, first + size)), axis=axis)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {decode_keypoints_op._opoverload: decode_keypoints}
