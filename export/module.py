"""The model that is exported: one function of padded images, with outputs of fixed size."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmask._version import __version__
from fastmask.models.detection._channels import count_channels
from fastmask.models.detection._overrides import check_static
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.prepare import CachedAnchors, prepare_for_inference
from fastmask.ops.masks import paste_masks
from fastmask.preprocess import normalize_padded
from fastmask.structures import Detections

MASKS = ("soft", "paste")
INPUTS = ("images", "sizes")
MAX_BATCH = 64  # of a dynamic graph
TRACED = (2, 7, 9)  # units of the traced input: no side of a feature map is 1 or equals another: it would be a constant


class Shape(NamedTuple):
    """Shape of an exported model's inputs."""

    batch: int
    height: int
    width: int
    dynamic: bool = False  # any batch up to MAX_BATCH, any sides up to the model's largest


class ExportableModel(nn.Module):
    """A copy of a model, its norms folded in, ready to be traced.

    Args:
        model: of ``fastmask.models.detection``.
        dtype: of weights and feature maps; boxes and scores are float32 at least.
        masks: "soft": probabilities [B, D, M, M] over the boxes; "paste": bool [B, D, H, W].
        raw: take images as uint8 [B, H, W, C] and normalize them.
        trim: run the heads on as many rows as an image of the batch has proposals and then detections, at least two,
            and pad the outputs to their fixed shapes. These numbers are read on the host: for CPUs.

    Raises:
        ValueError: ``masks`` is neither of these, the transform is another, or a weight is NaN or infinite.
    """

    image_mean: Tensor  # [C]
    image_std: Tensor
    extra_outputs: tuple[str, ...] = ()

    def __init__(
        self,
        model: GeneralizedRCNN,
        dtype: torch.dtype = torch.float32,
        masks: str = "soft",
        raw: bool = False,
        trim: bool = False,
    ) -> None:
        super().__init__()
        if masks not in MASKS:
            raise ValueError(f"masks must be one of {', '.join(MASKS)}, got {masks!r}")
        check_static(model, training=False, transform=True)
        if model.transform.fixed_size is not None:
            raise ValueError(
                f"model.transform must have no fixed_size to be exported, got {model.transform.fixed_size}"
            )
        self.model = prepare_for_inference(model, dtype).cpu()
        anchors = self.model.rpn.anchor_generator
        assert isinstance(anchors, CachedAnchors)
        self.model.rpn.anchor_generator = anchors.generator  # which keeps nothing between calls
        self.dtype, self.masks, self.raw, self.trim = dtype, masks, raw, trim
        self.has_mask, self.has_keypoint = self.model.roi_heads.has_mask(), self.model.roi_heads.has_keypoint()
        wide = torch.promote_types(dtype, torch.float32)
        self.channels = count_channels(model)
        for name in ("image_mean", "image_std"):
            values = torch.as_tensor(self._repeat(getattr(model.transform, name)), dtype=wide, device="cpu")
            self.register_buffer(name, values, persistent=False)
        self.eval()

    def _repeat(self, values: Sequence[float]) -> list[float]:
        """A value for each channel, from as many or one."""
        return [float(value) for value in values] * (self.channels // len(values))

    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of :meth:`forward`."""
        keypoints = ("keypoints", "keypoints_scores") if self.has_keypoint else ()
        masks = ("masks",) if self.has_mask else ()
        return ("boxes", "labels", "scores", *masks, *keypoints, "count", *self.extra_outputs)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects, best first; rows from ``count`` on are zeros.

        Args:
            images: [B, C, H, W] normalized, zeros beyond each image; or, ``raw``, uint8 [B, H, W, C].
            sizes: [B, 2] int64 (height, width) of each image in there, which begins in the top left corner.

        Returns:
            boxes [B, D, 4] in pixels of ``images``, labels [B, D], scores [B, D], masks or keypoints [B, D, K, 3] and
            keypoints_scores [B, D, K] (where there are such), count [B], and ``extra_outputs``.
        """
        height, width = (images.shape[1], images.shape[2]) if self.raw else (images.shape[2], images.shape[3])
        if self.raw:
            wide = images.to(self.image_mean.dtype)  # first of all: TensorRT takes uint8 nowhere else
            images = normalize_padded(wide.permute(0, 3, 1, 2), sizes, self.image_mean, self.image_std)
        detections, extra = self.detect(images.to(self.dtype), sizes)
        masks = detections.masks
        if masks is not None and self.masks == "paste":
            pasted = paste_masks(masks.flatten(0, 1).float(), detections.boxes.flatten(0, 1), (height, width))
            masks = pasted.unflatten(0, detections.labels.shape)
        branches = (masks, detections.keypoints, detections.keypoints_scores)
        rows = [detections.boxes, detections.labels, detections.scores]
        rows += [values for values in branches if values is not None]
        if self.trim:
            rows = [pad_rows(values, self.model.roi_heads.detections_per_img) for values in rows]
        return *rows, detections.count, *extra

    def detect(self, pixels: Tensor, sizes: Tensor) -> tuple[Detections, tuple[Tensor, ...]]:
        """Detections in normalized images, and the ``extra_outputs``."""
        return self.model.infer(pixels, sizes, trim="always" if self.trim else False), ()

    def make_example(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Make example inputs of a shape, of noise; a dynamic shape gets the one that is traced."""
        step = self.model.transform.size_divisible
        batch, height, width = shape[:3]
        if shape.dynamic:
            batch, height, width = TRACED[0], step * TRACED[1], step * TRACED[2]
        device, wide = self.image_mean.device, self.image_mean.dtype
        images = torch.randint(256, (batch, height, width, self.channels), dtype=torch.uint8, device=device)
        if not self.raw:
            images = images.permute(0, 3, 1, 2).to(wide).contiguous() / 128 - 1
        return images, torch.tensor([[height, width]] * batch, device=device)

    def max_side(self) -> int:
        """Largest side of a dynamic graph's images, in pixels."""
        step = self.model.transform.size_divisible
        return step * max(-(-int(self.model.transform.max_size) // step), TRACED[2] + 1)

    @torch.no_grad()
    def predict_arrays(self, images: NDArray[Any], sizes: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run :meth:`forward` on arrays; outputs by name, as arrays."""
        outputs = self(*(torch.from_numpy(values).to(self.image_mean.device) for values in (images, sizes)))
        return {name: values.cpu().numpy() for name, values in zip(self.outputs(), outputs, strict=True)}

    def dynamic_shapes(self) -> tuple[dict[int, object], dict[int, object]]:
        """Dimensions that vary, for ``torch.export``: the batch, and sides in multiples of the padding."""
        step = self.model.transform.size_divisible
        batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
        rows, columns = (torch.export.Dim(name, min=1, max=self.max_side() // step) for name in ("rows", "columns"))
        height, width = (1, 2) if self.raw else (2, 3)
        return {0: batch, height: step * rows, width: step * columns}, {0: batch}

    def check(self, shape: Shape) -> None:
        """Raise a ValueError if the model takes no inputs of this shape."""
        step = self.model.transform.size_divisible
        for name in ("height", "width"):
            side = getattr(shape, name)
            if side < step or side % step:
                raise ValueError(f"{name} must be a multiple of {step}, as the model pads, got {side}")
            if shape.dynamic and side > self.max_side():
                raise ValueError(f"{name} must be at most {self.max_side()}, as the model's images, got {side}")
        limit = MAX_BATCH if shape.dynamic else sys.maxsize
        if not 1 <= shape.batch <= limit:
            raise ValueError(
                f"batch must be {f'in [1, {limit}]' if shape.dynamic else 'at least 1'}, got {shape.batch}"
            )

    def format_metadata(self, shape: Shape, categories: Sequence[str] | None) -> dict[str, str]:
        """Format the metadata that running the file needs, each value as JSON."""
        transform = self.model.transform
        metadata: dict[str, Any] = {
            "fastmask": __version__,
            "categories": None if categories is None else list(categories),
            "image_mean": self._repeat(transform.image_mean),
            "image_std": self._repeat(transform.image_std),
            "min_size": int(transform.min_size[-1]),
            "max_size": int(transform.max_size),
            "size_divisible": int(transform.size_divisible),
            "batch": MAX_BATCH if shape.dynamic else shape.batch,
            "size": [self.max_side()] * 2 if shape.dynamic else [shape.height, shape.width],
            "dynamic": shape.dynamic,  # batch and size are then the largest
            "images": f"uint8 [B, H, W, {self.channels}]" if self.raw else f"normalized [B, {self.channels}, H, W]",
            "masks": self.masks if self.has_mask else None,
            "outputs": self.outputs(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        metadata |= {
            name: True for name, is_so in (("enlarge_only", transform._enlarge_only), ("trim", self.trim)) if is_so
        }
        return {name: json.dumps(value) for name, value in metadata.items()}


def pad_rows(values: Tensor, rows: int) -> Tensor:
    """[B, n, ...] -> [B, rows, ...], zeros from n on."""
    return torch.nn.functional.pad(values, (*[0, 0] * (values.ndim - 2), 0, rows - values.shape[1]))
