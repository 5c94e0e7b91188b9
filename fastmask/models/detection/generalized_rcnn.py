"""The whole model: images to detections; torchvision.models.detection.generalized_rcnn's names."""

import math
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable, check_shape
from fastmask.kernels.fallback.stem import has_gaps
from fastmask.models.detection._split import split
from fastmask.models.detection.losses import Losses, Total, roi_losses, rpn_losses
from fastmask.models.detection.roi_heads import RoIHeads
from fastmask.models.detection.rpn import RegionProposalNetwork
from fastmask.models.detection.targets import check_targets
from fastmask.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from fastmask.structures import Detections, Proposals, Targets, padded_targets

Sizes = list[tuple[int, int]]  # (height, width) of each image


class GeneralizedRCNN(NotScriptable, nn.Module):
    """Backbone, RPN and RoI heads between a transform and its inverse.

    Args:
        backbone: padded images [B, 3, H, W] -> feature map, or feature maps by name, finest first.
        rpn, roi_heads: what finds and what names.
        transform: what resizes, normalizes and pads.

    Source: torchvision/models/detection/generalized_rcnn.py.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        transform: GeneralizedRCNNTransform,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        # else every convolution of channels-last features copies its weights first, at every call
        self.to(memory_format=torch.channels_last)

    def infer(self, pixels: Tensor, sizes: Tensor, *, trim: bool = False) -> Detections:
        """The static program: fixed shapes, no host sync, nothing data-dependent.

        Args:
            pixels (Tensor[B, 3, H, W]): normalized and padded, as the transform makes them.
            sizes (Tensor[B, 2]): int64 (height, width) of each image inside, on the same device.
            trim: on the CPU, where it costs nothing to look, leave out rows that are padding in every image.

        Returns:
            Detections: in pixels of the batch.
        """
        features, scales, detections = self.find(pixels, sizes, trim=trim)
        return self.roi_heads.segment(features, scales, detections) if self.roi_heads.has_mask() else detections

    def find(
        self, pixels: Tensor, sizes: Tensor, *, trim: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, float], Detections]:
        """:meth:`infer` up to its masks: what :meth:`extract` gives, and detections without masks."""
        check_shape("pixels", pixels, "B", 3, "H", "W")
        check_shape("sizes", sizes, pixels.shape[0], 2)
        features, scales = self.extract(pixels)
        proposals = self.rpn.propose(*self.rpn.look(list(features.values()), (pixels.shape[2], pixels.shape[3])), sizes)
        proposals = trimmed(proposals) if trim else proposals
        logits, deltas = self.roi_heads.classify(features, scales, proposals.boxes, rois=proposals.rois)
        detections = self.roi_heads.select(logits, deltas, proposals, sizes)
        return features, scales, trimmed(detections) if trim else detections

    def extract(self, pixels: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Padded images -> feature maps by name, and feature pixels per image pixel of those RoIs are pooled from."""
        last = pixels if has_gaps(pixels) else pixels.contiguous(memory_format=torch.channels_last)
        features = self.backbone(last)
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        known = getattr(self.backbone, "strides", None) or {}
        poolers = (self.roi_heads.box_roi_pool, self.roi_heads.mask_roi_pool)
        pooled = {name for pooler in poolers if pooler is not None for name in pooler.featmap_names}
        scales = {}
        for name in features:
            if name in known:
                scales[name] = 1.0 / known[name]
            elif name in pooled:  # of a user's own backbone: the power of two nearest to what it did
                scales[name] = 2.0 ** round(math.log2(features[name].shape[2] / pixels.shape[2]))
        return features, scales

    def losses(self, pixels: Tensor, sizes: Tensor, targets: Targets, over: Total = lambda number: number) -> Losses:
        """The training twin of :meth:`infer`, in either mode: fixed shapes, five scalars (four without masks).

        Args:
            pixels, sizes: see :meth:`infer`.
            targets: padded, in pixels of the batch.
            over: the number of samples that a loss is the mean of -> what its sum is divided by instead.
        """
        features, scales = self.extract(pixels)
        looked = self.rpn.look(list(features.values()), (pixels.shape[2], pixels.shape[3]))
        proposals = trimmed(self.rpn.propose(*looked, sizes))
        found = roi_losses(self.roi_heads, features, scales, proposals, targets, over)
        return found | rpn_losses(self.rpn, *looked, targets, over)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> Losses | list[dict[str, Tensor]]:
        """Images [3, h, w] in [0, 1], of any sizes, as torchvision takes and answers them.

        ``torch.compile`` makes one graph of it, for these sizes; others are compiled anew.

        Args:
            images: their pixels.
            targets: in training, for each image boxes [n, 4] float, labels [n] int64 and, with a mask branch, masks
                [n, h, w]; in eval mode not looked at (:meth:`losses_of` gives losses there).

        Returns:
            In training, the losses; in eval mode, for each image boxes, labels, scores and masks [n, 1, h, w].

        Raises:
            ValueError: targets are missing or do not fit.
        """
        if self.training:
            return self.losses_of(images, targets)
        return self.transform.postprocess(*self._detected(images))

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """As :meth:`forward` in eval mode, but with masks as they are before pasting: probabilities [n, 1, M, M].

        For :func:`fastmask.ops.encode_masks` and :func:`fastmask.ops.paste_masks`, which need little memory.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("the model must be in eval mode to detect, got training mode")
        found, shapes, originals = self._detected(images)
        for detections, shape, original in zip(found, shapes, originals, strict=True):
            detections["boxes"] = resize_boxes(detections["boxes"], shape, original)
        return found

    def _detected(self, images: list[Tensor]) -> tuple[list[dict[str, Tensor]], Sizes, Sizes]:
        """Detections in pixels of the batch, the images' sizes there, and their own."""
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, _ = self.transform(images)
        sizes = torch.tensor(batch.image_sizes, device=batch.tensors.device)
        return split(self.infer(batch.tensors, sizes, trim=True)), batch.image_sizes, original

    def losses_of(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Losses:
        """The losses of images and targets as :meth:`forward` takes them, in the current mode, training or eval."""
        check_targets(targets, images, self.roi_heads.has_mask())
        batch, resized = self.transform(images, targets)
        assert resized is not None
        sizes = torch.tensor(batch.image_sizes, device=batch.tensors.device)
        return self.losses(batch.tensors, sizes, padded_targets(resized, batch.tensors, self.roi_heads.has_mask()))


Padded = TypeVar("Padded", Proposals, Detections)


def trimmed(padded: Padded) -> Padded:
    """Without the rows that are padding in every image; only on the CPU, where counting them costs nothing."""
    if padded.count.device.type != "cpu" or torch.compiler.is_compiling():
        return padded
    return first_rows(padded, max(int(padded.count.max()), 1))  # rows of nothing at all cannot be indexed


def first_rows(padded: Padded, number: int) -> Padded:
    """The first ``number`` rows of each image."""
    cut = {
        name: value[:, :number] if value is not None and name != "count" else value
        for name, value in padded._asdict().items()
    }
    return padded._replace(**cut)
