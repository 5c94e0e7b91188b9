"""The models on photographs, which are not part of the repository: FASTMASK_BALLOON names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import assert_exact
from PIL import Image
from slim import slim_pair
from torch import Tensor

from fastmask.matching import matched_share

FOLDER = os.environ.get("FASTMASK_BALLOON", "")


def photographs(number: int) -> list[Tensor]:
    """The first validation photographs [3, H, W] in [0, 1]."""
    if not FOLDER:
        pytest.skip("NO PHOTOGRAPHS: set FASTMASK_BALLOON to the folder of the balloon data set to run this test")
    paths = sorted(Path(FOLDER, "val").glob("*.jpg"))[:number]
    assert len(paths) == number, f"FASTMASK_BALLOON={FOLDER} must hold val/*.jpg, got {len(paths)}"
    return [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255 for path in paths]


def test_photographs_in_both_precisions() -> None:
    images = photographs(2)
    theirs, ours = slim_pair()
    with torch.no_grad():
        shares = [matched_share(*one) for one in zip(ours(images), theirs(images), strict=True)]
        assert sum(shares) / len(shares) >= 0.99
        theirs.double(), ours.double()
        exact = [image.double() for image in images]
        for actual, expected in zip(ours(exact), theirs(exact), strict=True):
            assert len(expected["boxes"])
            assert_exact(actual, expected)
