"""A model for TensorRT, whose NMS looks at so many candidates of an image and no more."""

import torch
from torch import Tensor

from fastmask.export.module import ExportableModel
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.structures import Candidates, Detections

CANDIDATES = 3840  # TensorRT's largest K of a TopK; its NMS looks at the best 5000 of an image, across classes


class TensorRTExportableModel(ExportableModel):
    """A model whose boxes' NMS chooses from the best candidates alone.

    What that leaves out scores no more than any of them: where as many are kept as can be (100, say), nothing is lost.
    The output ``num_dropped`` [B] is how many there were.

    Args:
        candidates: of an image, at most.
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
        """See :meth:`ExportableModel.detect`; :meth:`GeneralizedRCNN.infer` with a bound in the middle."""
        rpn, heads = self.model.rpn, self.model.roi_heads
        features, scales = self.model.extract(pixels)
        proposals = rpn.propose(*rpn.look(list(features.values()), (pixels.shape[2], pixels.shape[3])), sizes)
        logits, deltas = heads.classify(features, scales, proposals.boxes)
        found = heads.candidates(logits, deltas, proposals, sizes)
        num_dropped = (found.valid.sum(1) - self.candidates).clamp(min=0)
        detections = heads.suppress(best_of(found, self.candidates), logits.shape[1])
        if self.has_mask:
            detections = heads.segment(features, scales, detections)
        return detections, (num_dropped,)


def best_of(candidates: Candidates, number: int) -> Candidates:
    """Those of each image that score most, in the order that they are in; all of them if they are no more."""
    boxes, labels, scores, valid = candidates
    if scores.shape[1] <= number:
        return candidates
    index = scores.masked_fill(~valid, -1).topk(number, dim=1).indices.sort(dim=1).values
    best = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    return Candidates(best, labels.gather(1, index), scores.gather(1, index), valid.gather(1, index))
