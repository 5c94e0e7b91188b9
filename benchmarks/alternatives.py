"""``python -m fastmask.benchmarks.alternatives FILE.json``: kernels with other constants than they ship with.

For kernel authors with a GPU: the effect of a tile size or a number of warps or stages, before it becomes the default
or a knob of ``fastmask tune``, whose choices are few because each is compiled and tested. Here they are free. Each
result is checked against the default's and timed as a CUDA graph; the file is written after each kernel.
"""

import argparse
import importlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fastmask.benchmarks.cases import nms, roi_align
from fastmask.benchmarks.device_time import time_graph
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, STRIDES, blob_masks
from fastmask.benchmarks.measure import format_error, name_of, versions
from fastmask.kernels.class_masks import class_masks_op
from fastmask.kernels.fallback.stem import arrange_weight
from fastmask.kernels.linear_add_relu import linear_add_relu_op
from fastmask.kernels.max_pool2d import max_pool2d_op
from fastmask.kernels.predict_anchors import predict_anchors_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.stem_conv import stem_conv_op
from fastmask.kernels.top_anchors import top_anchors_op
from fastmask.kernels.tuning import with_index
from fastmask.ops.masks import choose_capacity

Run = Callable[[], Any]
BF16 = torch.bfloat16
TOLERANCE = 2.0**-6  # of sums in another order, rounded to bfloat16


class Alternatives(NamedTuple):
    """A kernel's module, a function that builds the timed call for a batch size, and constants to try."""

    module: str
    build: Callable[[int, torch.device], Run]
    choices: tuple[dict[str, Any], ...]


def _draw(*shape: int, device: torch.device) -> Tensor:
    values = torch.randn(shape, device=device).to(BF16)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def _levels(batch: int, device: torch.device, channels: int) -> list[Tensor]:
    sizes = [(-(-PADDED_SIZE[0] // stride), -(-PADDED_SIZE[1] // stride)) for stride in (*STRIDES, 2 * STRIDES[-1])]
    return [_draw(batch, channels, *size, device=device) for size in sizes]


def _stem(batch: int, device: torch.device) -> Run:
    pixels = _draw(batch, 4, *PADDED_SIZE, device=device)[:, :3]
    weight = arrange_weight(_draw(64, 3, 7, 7, device=device) / 12, 3)
    return lambda: stem_conv_op(pixels, weight, 3)


def _pool(batch: int, device: torch.device) -> Run:
    maps, bias = _draw(batch, 64, PADDED_SIZE[0] // 2, PADDED_SIZE[1] // 2, device=device), _draw(64, device=device)
    return lambda: max_pool2d_op(maps, bias, 3, 2, 1)


def _product(batch: int, device: torch.device) -> Run:
    pixels = batch * (PADDED_SIZE[0] // 4) * (PADDED_SIZE[1] // 4)
    x, weight, bias, residual = (_draw(*s, device=device) for s in ((pixels, 64), (256, 64), (256,), (pixels, 256)))
    return lambda: linear_add_relu_op(x, weight / 8, bias, residual)


def _anchors(batch: int, device: torch.device) -> Run:
    hidden, bias = _levels(batch, device, 256), _draw(256, device=device)
    weight = _draw(15, 256, device=device) / 16
    return lambda: predict_anchors_op(hidden, bias, weight, bias[:15], 3)


def _top(batch: int, device: torch.device) -> Run:
    logits = _levels(batch, device, 3)
    return lambda: top_anchors_op(logits, 1000)


def _masks(batch: int, device: torch.device) -> Run:
    num = 100 * batch
    hidden, up = _draw(num, 256, 14, 14, device=device), _draw(256, 256, 2, 2, device=device) / 16
    bias, rows, ends = _draw(256, device=device), _draw(91, 256, device=device) / 16, _draw(91, device=device)
    labels = torch.randint(1, 91, (num,), device=device)
    count = torch.full((batch,), 100, device=device)
    return lambda: class_masks_op(hidden, up, bias, rows, ends, labels, count)


def _text(batch: int, device: torch.device) -> Run:
    num = 100 * batch
    masks, boxes = blob_masks(torch.Generator().manual_seed(0), device, num, IMAGE_SIZE)
    sizes, capacity = torch.tensor([IMAGE_SIZE] * num, device=device), choose_capacity(num, IMAGE_SIZE[1])
    return lambda: encode_masks_op(masks[:, 0], boxes, sizes, capacity, 0.5, False, False, 1)[1]


def _roi_backward(batch: int, device: torch.device) -> Run:
    options: dict[str, Any] = {"num": 512, "batch": batch, "dtype": BF16, "way": "backward", "size": PADDED_SIZE}
    return roi_align.roi_align(torch.Generator().manual_seed(0), device, **options).capturable["fastmask"]


def _nchw(batch: int, device: torch.device) -> Run:
    options: dict[str, Any] = {"batch": batch, "channels_last": False, "size": PADDED_SIZE}
    return roi_align.roi_align(torch.Generator().manual_seed(0), device, **options).capturable["fastmask"]


def _classes(batch: int, device: torch.device) -> Run:
    generator = torch.Generator().manual_seed(0)
    case = nms.batched_nms(generator, device, num=20_000, groups=80, threshold=0.5, clustered=False)
    return case.capturable["fastmask"]


def _grid(names: str, *rows: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


AT_ONCE = {"num_stages": 1}
CASES = {
    "stem's convolution": Alternatives(
        "triton.stem_conv",
        _stem,
        _grid("ROWS COLUMNS NUM_WARPS", (8, 8, 4), (8, 16, 4), (2, 32, 4), (8, 32, 8), (4, 64, 8)),
    ),
    "max pooling": Alternatives(
        "triton.max_pool2d",
        _pool,
        _grid("ROWS ELEMENTS NUM_WARPS", (1, 2048, 4), (4, 2048, 4), (8, 2048, 4), (2, 4096, 8)),
    ),
    "product with residual": Alternatives(
        "triton.linear_add_relu",
        _product,
        _grid("PIXELS OUTPUTS NUM_WARPS NUM_STAGES", (128, 64, 4, 3), (64, 64, 4, 2), (64, 256, 8, 1), (32, 256, 4, 1)),
    ),
    "RPN's predictions": Alternatives(
        "triton.predict_anchors",
        _anchors,
        _grid(
            "FEW CHANNELS",
            ({"PIXELS": 64, "num_warps": 2, "num_stages": 3}, 64),
            ({"PIXELS": 64, "num_warps": 4, "num_stages": 4}, 64),
            ({"PIXELS": 128, "num_warps": 4, "num_stages": 4}, 32),
            ({"PIXELS": 128, "num_warps": 4, "num_stages": 3}, 64),
        ),
    ),
    "top anchors": Alternatives("triton.top_anchors", _top, _grid("CHUNK", (2048,), (8192,))),
    "mask branch": Alternatives(
        "triton.class_masks",
        _masks,
        _grid(
            "AT_ONCE QUARTERS",
            (AT_ONCE | {"ROWS": 128, "COLUMNS": 64, "num_warps": 4}, 2),
            (AT_ONCE | {"ROWS": 128, "COLUMNS": 128, "num_warps": 8}, 2),
            (AT_ONCE | {"ROWS": 128, "COLUMNS": 32, "num_warps": 4}, 2),
            (AT_ONCE | {"ROWS": 128, "COLUMNS": 64, "num_warps": 8}, 4),
            (AT_ONCE | {"ROWS": 128, "COLUMNS": 128, "num_warps": 8}, 1),
        ),
    ),
    "RLE": Alternatives("triton.rle", _text, _grid("TEXT_PROGRAMS PARTS", (512, 4), (2048, 16), (1, 1))),
    "RoIAlign backward": Alternatives(
        "triton.roi_align_backward",
        _roi_backward,
        _grid("REGISTERS", ({BF16: 128},), ({BF16: 255},))
        + _grid("NUM_WARPS REGISTERS", (8, {BF16: 128}))
        + _grid("TILE_Y CHANNELS", (8, {BF16: 128}))
        + _grid("SLOTS", (16,)),
    ),
    "copies to channels-last": Alternatives(
        "triton.channels_last",
        _nchw,
        _grid("PIXELS CHANNELS NUM_WARPS", (64, 32, 4), (64, 64, 8), (128, 32, 4), (32, 64, 4)),
    ),
    "NMS, runs": Alternatives("triton.nms_runs", _classes, _grid("SORT_WARPS MERGED", (8, 32), (16, 16), (16, 64))),
}


@contextmanager
def override_constants(module: Any, values: dict[str, Any]) -> Iterator[None]:
    """Give a module other constants; its cached launches are cleared before and after."""
    cached = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
    try:
        with mock.patch.multiple(module, **values):
            for function in cached:
                function.cache_clear()
            yield
    finally:
        for function in cached:
            function.cache_clear()


def check_equal(actual: Any, expected: Any) -> None:
    """Raise AssertionError unless results match to bfloat16's rounding, integers exactly."""
    if isinstance(actual, Tensor):
        exact = not actual.is_floating_point()
        scale = 0.0 if exact else TOLERANCE * float(expected.float().abs().amax())
        torch.testing.assert_close(actual, expected, rtol=0, atol=scale, equal_nan=True)
        return
    for part, expected_part in zip(actual, expected, strict=True):
        check_equal(part, expected_part)


def try_case(case: Alternatives, batch: int, device: torch.device, timer: Callable[[Run], float]) -> dict[str, Any]:
    """Microseconds by constants, the defaults first; an error message where a choice fails."""
    module = importlib.import_module(f"fastmask.kernels.{case.module}")
    run = case.build(batch, device)
    expected = run()
    times: dict[str, Any] = {"default": round(1e6 * timer(run), 2)}
    for choice in case.choices:
        name = ", ".join(f"{constant} {value}" for constant, value in choice.items())
        try:
            with override_constants(module, choice):
                check_equal(run(), expected)
                times[name] = round(1e6 * timer(run), 2)
        except AssertionError as error:
            times[name] = f"does not match: {' '.join(str(error).split())[:120]}"
        except Exception as error:  # such as too much shared memory: the next one may fit
            times[name] = f"fails: {format_error(error)}"
    return times


def main(argv: Sequence[str] | None = None, timer: Callable[[Run], float] = time_graph) -> int:
    """Exit code 1 if a kernel fails with its default constants."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.alternatives", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose names match")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="[1 8]")
    args = parser.parse_args(argv)
    device = with_index(torch.device(args.device))
    result: dict[str, Any] = {"device": name_of(device), **versions(), "unit": "microseconds", "finished": False}
    with torch.no_grad():
        for name, case in CASES.items():
            for batch in args.batch if re.search(args.only, name) else ():
                torch.manual_seed(0)
                try:
                    times: dict[str, Any] = try_case(case, batch, device, timer)
                except Exception as error:  # of the default; other kernels go on
                    times = {"default": f"fails: {format_error(error)}"}
                result[f"{name}, batch {batch}"] = times
                args.file.write_text(json.dumps(result, indent=1))
                lines = [f"{name}, batch {batch}", *(f"  {time:>10} {choice}" for choice, time in times.items())]
                print("\n".join(lines), flush=True)
    result["finished"] = True
    args.file.write_text(json.dumps(result, indent=1))
    return int(any(isinstance(times, dict) and isinstance(times["default"], str) for times in result.values()))


if __name__ == "__main__":
    raise SystemExit(main())
