"""fastmask::multilevel_roi_align: which samples count at the border, and how many adaptive bins take."""

from fractions import Fraction

import pytest
import torch
from helpers.inputs import INF, LAYOUTS, strided
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.launch import INTERPRET
from fastmask.kernels.roi_align import multilevel_roi_align_op


@pytest.mark.parametrize("scale", [1e4, 1e6], ids="{:g}px".format)
def test_huge_adaptive_grids_are_exact_and_cheap(scale: float, device: torch.device) -> None:
    """A RoI of a million pixels takes a million samples an axis, of which only those on the map can count."""
    features = torch.randn(1, 2, 9, 11, dtype=torch.float64, device=device)
    corner = -scale * torch.rand(2).double()
    roi = torch.cat([torch.zeros(1), corner, corner + scale])[None].double()
    actual = multilevel_roi_align_op([features], roi.to(device), [1.0], [INF], 2, 2, 0, False)
    weights = [axis_weights(float(roi[0, 1 + i]), float(roi[0, 3 + i]), 2, features.shape[3 - i]) for i in (0, 1)]
    expected = torch.einsum("ph,chw,qw->cpq", weights[1], features[0].cpu(), weights[0])[None]
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-7, atol=1e-15)


def axis_weights(low: float, high: float, bins: int, size: int) -> Tensor:
    """The weight of each of ``size`` pixels in each bin's mean of all samples, vectorized over a million of them."""
    length = (high - low) / bins
    grid = int(-(-length // 1))
    rows = []
    for p in range(bins):
        position = low + p * length + (torch.arange(grid).double() + 0.5) * length / grid
        position = position[(position >= -1) & (position <= size)].clamp(0, size - 1)
        cell = position.long()
        row = torch.zeros(size, dtype=torch.float64)
        row.index_add_(0, cell, 1 - (position - cell))
        row.index_add_(0, (cell + 1).clamp(max=size - 1), position - cell)
        rows.append(row / grid)
    return torch.stack(rows)


@pytest.mark.parametrize("ratio", [1, 2, 3, 0], ids="ratio{}".format)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_a_sample_on_the_border_counts(layout: str, ratio: int, device: torch.device) -> None:
    """The border rule, in fractions: RoIs with a sample exactly a pixel off the map, or an ulp further."""
    num_bins, size, rois = 7, (6, 13), []
    for _ in range(12 if INTERPRET else 200):
        samples = num_bins * (ratio or 2)
        place = 2 * int(torch.randint(samples, ())) + 1
        step = int(torch.randint(1, 24, ())) / 16 if ratio else (1 + float(torch.rand(()) < 0.5)) / 2  # 2 samples a bin
        start = [-1, size[1]][int(torch.randint(2, ()))] - place * step / 2
        start = float(torch.nextafter(torch.tensor(start), torch.tensor([-INF, start, INF][int(torch.randint(3, ()))])))
        rois.append([0, start, 1, start + step * samples, 4])
    rois = torch.tensor(rois)
    features = strided(torch.ones(1, 3, *size, device=device), layout)
    actual = multilevel_roi_align_op([features], rois.to(device), [1.0], [INF], 1, num_bins, ratio, True)
    for (_, x1, _, x2, _), row in zip(rois.tolist(), actual[:, 0, 0].tolist(), strict=True):
        start, extent = Fraction(x1) - Fraction(1, 2), Fraction(x2) - Fraction(x1)
        grid = ratio or reference.count_samples(float(extent), num_bins, torch.float32)
        for q, value in enumerate(row):
            positions = [start + (2 * (q * grid + i) + 1) * extent / (2 * num_bins * grid) for i in range(grid)]
            counted = sum(-1 <= position <= size[1] for position in positions)
            assert value == pytest.approx(counted / max(grid, 1), abs=1e-5)
    torch.testing.assert_close(
        actual.cpu(), reference.multilevel_roi_align([features.cpu()], rois, [1.0], [INF], 1, num_bins, ratio, True)
    )


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_whole_extents_at_fractions_of_pixels(layout: str, device: torch.device) -> None:
    """Adaptive samples are counted in float32: 7 pixels from 0.1 on are one for each of 7 bins, not two."""
    corner, sides = torch.rand(20, 2) * 20, 28.0 * torch.randint(1, 3, (20, 2))
    rois = torch.cat([torch.zeros(20, 1), corner, corner + sides], 1)
    features = strided(torch.randn(1, 3, 20, 24), layout)
    actual = multilevel_roi_align_op([features.to(device)], rois.to(device), [0.25], [INF], 7, 7, 0, False)
    expected = reference.multilevel_roi_align([features], rois, [0.25], [INF], 7, 7, 0, False)
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-5, atol=2e-5)
