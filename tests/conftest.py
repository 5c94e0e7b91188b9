"""Seeds, drawn anew for each run and each test, and the devices that tests run on."""

import hashlib
import importlib.util
import os
import random
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

HAS_PYCOCOTOOLS = importlib.util.find_spec("pycocotools") is not None
os.environ.setdefault("FASTMASK_TUNING", "off")  # tests are of the defaults, whatever this GPU was tuned to

if os.environ.get("TRITON_INTERPRET") == "1":  # each program is slow there: fewer and larger ones
    from fastmask.kernels.triton import (
        bias_act as bias_act_triton,
        max_pool2d as max_pool2d_triton,
        nms_order as nms_order_triton,
        nms_pairs as nms_pairs_triton,
        nms_presorted as nms_presorted_triton,
        nms_runs as nms_runs_triton,
        paste as paste_triton,
        predict_anchors as predict_anchors_triton,
        rle as rle_triton,
        roi_align as roi_align_triton,
        roi_align_backward as roi_align_backward_triton,
        roi_pool as roi_pool_triton,
    )

    roi_align_triton.PROGRAMS = 1
    roi_align_backward_triton.TILE_Y, roi_align_backward_triton.TILE_X = 32, 32
    roi_pool_triton.TILE = 32
    nms_order_triton.COUNTED, nms_order_triton.PLACED, nms_order_triton.RUN, nms_pairs_triton.COLUMNS = (
        256,
        256,
        128,
        32,
    )
    nms_presorted_triton.MERGED, nms_runs_triton.MERGED = 256, 256
    paste_triton.TILE, paste_triton.PROGRAMS = 1024, 32
    rle_triton.PROGRAMS, rle_triton.BLOCK = 8, 1024
    bias_act_triton.ELEMENTS, max_pool2d_triton.ELEMENTS = 2**16, 2**14
    for tile in (predict_anchors_triton.FEW, predict_anchors_triton.MANY):
        tile["PIXELS"] = 256


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="repeat a run: the seed that its header printed")


def pytest_configure(config: pytest.Config) -> None:
    seed = getattr(config, "workerinput", {}).get("fastmask_seed", config.getoption("--seed"))
    config.fastmask_seed = random.SystemRandom().randrange(2**31) if seed is None else seed


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist's workers have the seed that is printed."""
    node.workerinput["fastmask_seed"] = node.config.fastmask_seed


def skip_without_pycocotools() -> Generator[None, object, object]:
    """Where it is not installed (the machines of some GPUs), what turns out to need it is skipped."""
    try:
        return (yield)
    except ImportError as error:
        if HAS_PYCOCOTOOLS or "needs pycocotools" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from skip_without_pycocotools())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from skip_without_pycocotools())


def pytest_runtest_logfinish(nodeid: str) -> None:
    """A kernel that broke CUDA's context fails every later test of the process: another process goes on, or nobody."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except Exception as error:  # RuntimeError or AcceleratorError, by version
        if "PYTEST_XDIST_WORKER" in os.environ:  # the report of the test has been sent
            os._exit(3)
        pytest.exit(f"{nodeid} broke the GPU's context: {error}", returncode=3)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fastmask: --seed {config.fastmask_seed}, torch {torch.__version__}"


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Each test's own seed, the same whichever tests run beside it."""
    key = f"{request.config.fastmask_seed} {request.node.nodeid}"
    value = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
    return value


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def slim_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module]:
    """A checkpoint of torchvision's slim model, which ``--model slim`` builds, and that model."""
    from helpers.slim import builder, slim_pair

    import fastmask
    from fastmask.models import _api

    monkeypatch.setitem(_api._BUILDERS, "slim", builder())
    monkeypatch.setitem(_api._WEIGHTS, "slim", fastmask.models.detection.MaskRCNN_ResNet50_FPN_Weights)
    theirs, _ = slim_pair()
    torch.save(
        {"model": theirs.state_dict(), "categories": ["-", "one", "two", "three", "four"]}, tmp_path / "slim.pth"
    )
    return tmp_path / "slim.pth", theirs


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as in a terminal; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
