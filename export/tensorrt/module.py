"""A model for TensorRT, whose NMS takes a bounded number of candidates of an image."""

import torch
from torch import Tensor

from fastmask.export.module import ExportableModel
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.structures import Candidates, Detections

CANDIDATES = 3840  # TensorRT's largest K of a TopK; its NMS takes the best 5000 of an image, across classes


class TensorRTExportableModel(ExportableModel):
    """A model whose boxes' NMS chooses from the best candidates alone.

    Dropped candidates score no more than any of these: where an image has its maximum of detections, nothing is lost.
    The output ``num_dropped`` [B] is the number of candidates dropped.

    Args:
        candidates: maximum number of an image.
        model, dtype, masks, raw: see :class:`ExportableModel`.
    """

    extra_outputs = ("num_dropped",)

    def __init__(
        self,
        model: GeneralizedRCNN,
        dtype: torch.dtype = torch.float32,
        masks: str = "soft",
        raw: bool = False,
        candidates: int = CANDIDATES,
    ) -> None:
        super().__init__(model, dtype, masks, raw)
        if not 1 <= candidates <= CANDIDATES:
            raise ValueError(f"candidates must be in [1, {CANDIDATES}], got {candidates}")
        self.candidates = candidates

    def detect(self, pixels: Tensor, sizes: Tensor) -> tuple[Detections, tuple[Tensor, ...]]:
        """See :meth:`ExportableModel.detect`; the stages of :meth:`GeneralizedRCNN.infer` with a bound before NMS."""
        heads = self.model.roi_heads
        features, candidates = self.model.detect_candidates(pixels, sizes)
        num_dropped = (candidates.valid.sum(1) - self.candidates).clamp(min=0)
        detections = heads.suppress(keep_best(candidates, self.candidates))
        return heads.complete(features, detections, (pixels.shape[2], pixels.shape[3])), (num_dropped,)


def keep_best(candidates: Candidates, number: int) -> Candidates:
    """Keep those of each image that score most, in their order; all of them if they are no more."""
    boxes, labels, scores, valid, num_classes = candidates
    if scores.shape[1] <= number:
        return candidates
    index = scores.masked_fill(~valid, -1).topk(number, dim=1).indices.sort(dim=1).values
    boxes = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    labels, scores, valid = (values.gather(1, index) for values in (labels, scores, valid))
    return Candidates(boxes, labels, scores, valid, num_classes)
