"""The whole model: images to detections; torchvision.models.detection.generalized_rcnn's names."""

import math
from collections import OrderedDict
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from fastmask.checks import NotScriptable, check_shape, is_readable
from fastmask.kernels.fallback.stem import has_gaps
from fastmask.models._layout import is_own, takes_channels_last
from fastmask.models.detection._c4_backbone import C4Backbone
from fastmask.models.detection._channels import check_pixels
from fastmask.models.detection._overrides import check_static, is_static, reads_targets
from fastmask.models.detection._unpad import unpad
from fastmask.models.detection.backbone_utils import BackboneWithFPN
from fastmask.models.detection.image_list import ImageList
from fastmask.models.detection.losses import Losses, Normalizer, roi_losses, rpn_losses
from fastmask.models.detection.roi_heads import RoIHeads
from fastmask.models.detection.rpn import RegionProposalNetwork
from fastmask.models.detection.targets import check_boxes, check_targets
from fastmask.models.detection.transform import GeneralizedRCNNTransform, resize_boxes, resize_keypoints
from fastmask.structures import Candidates, Detections, Features, Prediction, Proposals, Targets, pad_targets

Trim = bool | Literal["always"]  # see GeneralizedRCNN.infer
Sizes = list[tuple[int, int]]  # (height, width) of each image


class GeneralizedRCNN(NotScriptable, nn.Module):
    """A two-stage detector: transform, backbone, RPN and RoI heads.

    Args:
        backbone: padded images [B, C, H, W] -> a feature map, or feature maps by name, finest first.
        rpn: feature maps -> proposals.
        roi_heads: feature maps and proposals -> detections.
        transform: resizes, normalizes and pads images, and takes detections back to their pixels.

    Source: torchvision/models/detection/generalized_rcnn.py.
    """

    def __init__(
        self, backbone: nn.Module, rpn: RegionProposalNetwork, roi_heads: RoIHeads, transform: GeneralizedRCNNTransform
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def infer(self, pixels: Tensor, sizes: Tensor, *, trim: Trim = False) -> Detections:
        """The static program: fixed shapes, no host sync, nothing data-dependent.

        It calls stages of its own instead of torchvision's methods on lists: the model called on images honors those
        that users override.

        Args:
            pixels (Tensor[B, C, H, W]): normalized and padded, as the transform makes them.
            sizes (Tensor[B, 2]): int64 (height, width) of each image inside, on the same device.
            trim: drop the rows that are padding in every image, but one: True, where reading the counts costs nothing,
                on a CPU; "always", also where that is a host sync or, in an exported program, a size of data.

        Returns:
            Detections: in pixels of the batch.

        Raises:
            ValueError: the user has replaced something that this program would not call.
        """
        check_static(self, training=False)
        features, detections = self.detect_boxes(pixels, sizes, trim=trim)
        return self.roi_heads.complete(features, detections, (pixels.shape[2], pixels.shape[3]))

    def detect_boxes(self, pixels: Tensor, sizes: Tensor, *, trim: Trim = False) -> tuple[Features, Detections]:
        """:meth:`infer` before the mask and keypoint branches: feature maps, and detections without both."""
        features, candidates = self.detect_candidates(pixels, sizes, trim=trim)
        detections = self.roi_heads.suppress(candidates)
        return features, drop_padding(detections, trim)

    def detect_candidates(self, pixels: Tensor, sizes: Tensor, *, trim: Trim = False) -> tuple[Features, Candidates]:
        """:meth:`infer` before the boxes' NMS: feature maps, and what NMS chooses from."""
        check_pixels(pixels, self)
        check_shape("sizes", sizes, pixels.shape[0], 2)
        features = self.extract_features(pixels)
        proposals = self.rpn.propose(self.rpn.predict(features, (pixels.shape[2], pixels.shape[3])), sizes)
        proposals = drop_padding(proposals, trim)
        logits, deltas = self.roi_heads.classify(features, proposals.boxes, rois=proposals.rois)
        return features, self.roi_heads.select_candidates(logits, deltas, proposals, sizes)

    def extract_features(self, pixels: Tensor) -> Features:
        """Padded images [B, C, H, W] -> feature maps."""
        own = takes_channels_last(self.backbone)
        if not (own and has_gaps(pixels)):
            pixels = pixels.contiguous(memory_format=torch.channels_last if own else torch.contiguous_format)
        maps = self.backbone(pixels)
        if isinstance(maps, Tensor):
            maps = OrderedDict([("0", maps)])
        last = is_own(self.rpn) and takes_channels_last(self.rpn.head) and is_own(self.roi_heads)
        if last != own:  # one of a user's reads what ours wrote, or ours what a user's did
            layout = torch.channels_last if last else torch.contiguous_format
            maps = OrderedDict((name, feature.contiguous(memory_format=layout)) for name, feature in maps.items())
        known: dict[str, int] = {}  # a user's own backbone may have other strides by that name
        if isinstance(self.backbone, BackboneWithFPN | C4Backbone) and self.backbone.strides is not None:
            known = self.backbone.strides
        poolers = [
            getattr(self.roi_heads, f"{name}_roi_pool", None) for name in ("box", "mask", "keypoint")
        ]  # of any class
        pooled = {name for pooler in poolers for name in getattr(pooler, "featmap_names", ())}
        scales = {}
        for name in maps:
            if name in known:
                scales[name] = 1.0 / known[name]
            elif name in pooled:  # of a user's own backbone: the power of two nearest to the ratio of heights
                scales[name] = 2.0 ** round(math.log2(maps[name].shape[2] / pixels.shape[2]))
        return Features(maps, scales)

    def losses(
        self, pixels: Tensor, sizes: Tensor, targets: Targets, normalizer: Normalizer = lambda number: number
    ) -> Losses:
        """The static program of training, in either mode: fixed shapes, four scalars and one of masks or keypoints.

        Args:
            pixels, sizes: see :meth:`infer`.
            targets: padded, in pixels of the batch; their values are not checked (:meth:`losses_of` does).
            normalizer: number of samples of a loss -> divisor of its sum; the number itself makes the loss a mean.

        Raises:
            ValueError: the user has replaced something that this program would not call.
        """
        check_static(self, training=True)
        check_pixels(pixels, self)
        features = self.extract_features(pixels)
        outputs = self.rpn.predict(features, (pixels.shape[2], pixels.shape[3]))
        proposals = drop_padding(self.rpn.propose(outputs, sizes))
        losses = roi_losses(self.roi_heads, features, proposals, sizes, targets, normalizer)
        return losses | rpn_losses(self.rpn, outputs, targets, normalizer)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> Losses | list[Prediction]:
        """Images [C, h, w] in [0, 1], of any sizes -> losses or predictions, as torchvision's models.

        ``torch.compile`` makes one graph of it, for these sizes; others are compiled anew.

        Args:
            images: their pixels.
            targets: in training, for each image boxes [n, 4] float, labels [n] int64 and, with such a branch, masks
                [n, h, w] or keypoints [n, K, 3] (x, y, visibility); ignored in eval mode (:meth:`losses_of` gives
                losses there).

        Returns:
            In training, the losses; in eval mode, for each image boxes, labels, scores and, with such
            a branch, masks [n, 1, h, w] or keypoints [n, K, 3] and keypoints_scores [n, K].

        Raises:
            ValueError: targets are missing or do not fit; see :meth:`losses_of`.
        """
        losses: Losses = {}
        predictions: list[Prediction] = []
        if not is_static(self, self.training):
            predictions, losses = self._run_parts(images, targets)
        elif self.training:
            losses = self.losses_of(images, targets)
        else:
            predictions = self.transform.postprocess(*self._detect(images))
        return self.eager_outputs(losses, predictions)

    def eager_outputs(self, losses: Losses, detections: list[Prediction]) -> Losses | list[Prediction]:
        """What :meth:`forward` returns of the two, of which one is empty."""
        return losses if self.training else detections

    def detect(self, images: list[Tensor]) -> list[Prediction]:
        """As :meth:`forward` in eval mode, but with masks as they are before pasting: probabilities [n, 1, M, M].

        For :func:`fastmask.ops.encode_masks` and :func:`fastmask.ops.paste_masks`, which need little memory.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("the model must be in eval mode to detect, got training mode")
        predictions, shapes, originals = self._detect(images)
        for prediction, shape, original in zip(predictions, shapes, originals, strict=True):
            prediction["boxes"] = resize_boxes(prediction["boxes"], shape, original)
            if "keypoints" in prediction:
                prediction["keypoints"] = resize_keypoints(prediction["keypoints"], shape, original)
        return predictions

    def _detect(self, images: list[Tensor]) -> tuple[list[Prediction], Sizes, Sizes]:
        """Predictions in pixels of the batch, the images' sizes there, and their original sizes."""
        _check_values(images)
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, _ = self.transform(images)
        if not is_static(self, training=False):
            return self._call_parts(batch, None)[0], batch.image_sizes, original
        sizes = torch.tensor(batch.image_sizes, device=batch.tensors.device)
        return unpad(self.infer(batch.tensors, sizes, trim=True)), batch.image_sizes, original

    def losses_of(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Losses:
        """The losses of images and targets as :meth:`forward` takes them, in the current mode, training or eval.

        Raises:
            ValueError: targets do not fit; their values are checked where they are on the CPU, as on a GPU that would
                be a host sync. Or, in eval mode, parts that users replace would have to give losses.
        """
        self._check_targets(images, targets)
        batch, resized = self.transform(images, targets)
        assert resized is not None
        if self.training and not is_static(self, training=True):
            return self._call_parts(batch, resized)[1]
        sizes = torch.tensor(batch.image_sizes, device=batch.tensors.device)
        branches = self.roi_heads.has_mask(), self.roi_heads.has_keypoint()
        return self.losses(batch.tensors, sizes, pad_targets(resized, batch.tensors, *branches))

    def _check_targets(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> None:
        """Only boxes, as torchvision, where a user's own code reads the rest of the targets."""
        if self.training and reads_targets(self):
            check_boxes(targets, images)
        else:
            heads = self.roi_heads
            check_targets(targets, images, heads.has_mask(), heads.num_classes(), heads.num_keypoints())

    def _run_parts(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Prediction], Losses]:
        """Both results of torchvision's own forward; each part may be in another mode than the model."""
        _check_values(images)
        if self.training:
            self._check_targets(images, targets)
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, resized = self.transform(images, targets)
        predictions, losses = self._call_parts(batch, resized)
        return self.transform.postprocess(predictions, batch.image_sizes, original), losses

    def _call_parts(self, batch: ImageList, targets: list[dict[str, Tensor]] | None) -> tuple[list[Prediction], Losses]:
        """Predictions in pixels of the batch, and losses, by the parts' own methods on lists, as in torchvision.

        Users' code sees contiguous features there.
        """
        check_pixels(batch.tensors, self)
        maps = {name: feature.contiguous() for name, feature in self.extract_features(batch.tensors).maps.items()}
        proposals, rpn_losses = self.rpn(batch, maps, targets)
        predictions, losses = self.roi_heads(maps, proposals, batch.image_sizes, targets)
        return predictions, losses | rpn_losses

    _replaceable = {"forward": forward, "eager_outputs": eager_outputs}  # noqa: RUF012 -- no field: see check_static


Padded = TypeVar("Padded", Proposals, Detections)


def _check_values(images: list[Tensor]) -> None:
    if not torch.compiler.is_compiling() and any(image.is_meta or isinstance(image, FakeTensor) for image in images):
        raise ValueError("images must have values, got meta or fake tensors, on which model.infer runs")


def drop_padding(padded: Padded, trim: Trim = True) -> Padded:
    """Drop the rows that are padding in every image; where: see :meth:`GeneralizedRCNN.infer`."""
    if trim == "always" and torch.compiler.is_exporting():
        least = min(2, padded.boxes.shape[1])  # PyTorch 2.11 compiles no size that may be 1
        number: int = padded.count.max().clamp(min=least).item()  # type: ignore[assignment] # a SymInt without a value
        torch._check(number >= least)
        torch._check(number <= padded.boxes.shape[1])
        return first_rows(padded, number)
    if not trim or (trim is True and not is_readable(padded.count)):
        return padded
    return first_rows(padded, max(int(padded.count.max()), 1))  # tensors without rows cannot be indexed


def first_rows(padded: Padded, number: int) -> Padded:
    """The first ``number`` rows of each image."""
    named = padded._asdict().items()
    cut = {name: value[:, :number] for name, value in named if value is not None and name != "count"}
    return padded._replace(**cut)
