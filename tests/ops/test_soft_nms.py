"""soft_nms and batched_soft_nms, which torchvision does not have, against the literal specification."""

import pytest
import torch
from helpers.inputs import draw_boxes

from fastmask import ops
from fastmask.kernels import reference


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("num", [0, 1, 40], ids="N{}".format)
def test_meets_the_specification(num: int, method: str) -> None:
    boxes, scores = draw_boxes(num, largest=60).double(), torch.rand(num).double()
    categories = torch.tensor([0.5, -0.5, -0.0, 0.0]).repeat(10)[:num]  # of any real dtype; -0.0 is 0.0
    for groups in (None, categories):
        if groups is None:
            kept, decayed = ops.soft_nms(boxes, scores, method=method)
        else:
            kept, decayed = ops.batched_soft_nms(boxes, scores, groups, 0.4, 0.25, method, 0.1)
        settings = (0.3, 0.5, 0.001) if groups is None else (0.4, 0.25, 0.1)
        iou, sigma, least = settings
        expected = reference.soft_nms(boxes, scores, groups, None, iou, sigma, method == "gaussian", least, num)
        assert (kept.tolist(), decayed.tolist()) == expected


def test_compiles_and_exports() -> None:
    """The number of kept boxes is only known at run time."""

    class Keep(torch.nn.Module):
        def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            kept, decayed = ops.soft_nms(boxes, scores, method="gaussian")
            return boxes[kept] * decayed[:, None]

    boxes, scores = draw_boxes(20, largest=60), torch.rand(20)
    program = torch.export.export(Keep(), (boxes, scores)).module()
    torch.testing.assert_close(program(boxes, scores), Keep()(boxes, scores), rtol=0, atol=0)
