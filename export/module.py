"""What is exported: a model as one function of padded images, with fixed-size answers."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmask._version import __version__
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.models.prepare import CachedAnchors, prepare_for_inference
from fastmask.ops.masks import paste_masks
from fastmask.structures import Detections

MASKS = ("raw28", "paste")
INPUTS = ("images", "sizes")
BATCHES = 64  # images at once in a dynamic graph, at most
TRACED = (2, 7, 9)  # what it is traced with: no side of any map is 1, and none like another, or it would be a constant


class Shape(NamedTuple):
    """What an exported model takes."""

    batch: int
    height: int
    width: int
    dynamic: bool = False  # any batch up to BATCHES, any sides up to the model's largest


class Deployed(nn.Module):
    """A copy of a model, its norms folded in, ready to be traced.

    Args:
        model: of ``fastmask.models.detection``.
        dtype: of weights and maps; boxes and scores are float32 at least.
        masks: "raw28": probabilities [B, D, 28, 28] over the boxes; "paste": bool [B, D, H, W].
        raw: take images as uint8 [B, H, W, 3] and normalize them.

    Raises:
        ValueError: ``masks`` is neither of these, the transform is another, or a weight is NaN or infinite.
    """

    image_mean: Tensor
    image_std: Tensor
    more: tuple[str, ...] = ()  # further outputs

    def __init__(
        self, model: GeneralizedRCNN, dtype: torch.dtype = torch.float32, masks: str = "raw28", raw: bool = False
    ) -> None:
        super().__init__()
        if masks not in MASKS:
            raise ValueError(f"masks must be one of {', '.join(MASKS)}, got {masks!r}")
        if type(model.transform) is not GeneralizedRCNNTransform or model.transform.fixed_size is not None:
            raise ValueError("model.transform must be GeneralizedRCNNTransform without fixed_size, to be exported")
        self.model = prepare_for_inference(model, dtype).cpu()
        anchors = self.model.rpn.anchor_generator
        assert isinstance(anchors, CachedAnchors)
        self.model.rpn.anchor_generator = anchors.generator  # which keeps nothing between calls
        self.dtype, self.masks, self.raw = dtype, masks, raw
        self.has_mask = self.model.roi_heads.has_mask()
        wide = torch.promote_types(dtype, torch.float32)
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(model.transform, name), dtype=wide)
            self.register_buffer(name, values.view(1, 3, 1, 1), persistent=False)
        self.eval()

    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` gives."""
        return ("boxes", "labels", "scores", *(["masks"] if self.has_mask else []), "count", *self.more)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detections, best first, zeros from ``count`` on.

        Args:
            images: [B, 3, H, W] normalized, zeros beyond each image; or, ``raw``, uint8 [B, H, W, 3].
            sizes: [B, 2] int64 (height, width) of each image in there, which begins in the top left corner.

        Returns:
            boxes [B, D, 4] in pixels of ``images``, labels [B, D], scores [B, D], masks (where there are such),
            count [B], and what ``more`` names.
        """
        height, width = (images.shape[1], images.shape[2]) if self.raw else (images.shape[2], images.shape[3])
        pixels = self._normalized(images, sizes) if self.raw else images
        found, more = self.detections(pixels.to(self.dtype), sizes)
        masks = found.masks
        if masks is None:
            return found.boxes, found.labels, found.scores, found.count, *more
        if self.masks == "paste":
            pasted = paste_masks(masks.flatten(0, 1).float(), found.boxes.flatten(0, 1), (height, width))
            masks = pasted.unflatten(0, found.labels.shape)
        return found.boxes, found.labels, found.scores, masks, found.count, *more

    def detections(self, pixels: Tensor, sizes: Tensor) -> tuple[Detections, tuple[Tensor, ...]]:
        """What is found in normalized images, and outputs of the names in ``more``."""
        return self.model.infer(pixels, sizes), ()

    def _normalized(self, images: Tensor, sizes: Tensor) -> Tensor:
        pixels = images.to(self.image_mean.dtype).permute(0, 3, 1, 2) / 255
        rows = torch.arange(images.shape[1], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[2], device=images.device) < sizes[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        return torch.where(inside, (pixels - self.image_mean) / self.image_std, 0.0)

    def example(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Inputs of a shape, or what stands for all of them; noise."""
        step = self.model.transform.size_divisible
        batch, height, width = shape[:3]
        if shape.dynamic:
            batch, height, width = TRACED[0], step * TRACED[1], step * TRACED[2]
        device, wide = self.image_mean.device, self.image_mean.dtype
        images = torch.randint(256, (batch, height, width, 3), dtype=torch.uint8, device=device)
        if not self.raw:
            images = images.permute(0, 3, 1, 2).to(wide).contiguous() / 128 - 1
        return images, torch.tensor([[height, width]] * batch, device=device)

    def most(self) -> int:
        """The largest side of a dynamic graph's images."""
        step = self.model.transform.size_divisible
        return step * max(-(-int(self.model.transform.max_size) // step), TRACED[2] + 1)

    @torch.no_grad()
    def answers(self, images: NDArray[Any], sizes: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What :meth:`forward` gives, by name, of and as arrays."""
        found = self(*(torch.from_numpy(values).to(self.image_mean.device) for values in (images, sizes)))
        return {name: values.cpu().numpy() for name, values in zip(self.outputs(), found, strict=True)}

    def dynamic_shapes(self) -> tuple[dict[int, object], dict[int, object]]:
        """For ``torch.export``: the batch, and sides in multiples of the padding."""
        step = self.model.transform.size_divisible
        batch = torch.export.Dim("batch", min=1, max=BATCHES)
        rows, columns = (torch.export.Dim(name, min=1, max=self.most() // step) for name in ("rows", "columns"))
        height, width = (1, 2) if self.raw else (2, 3)
        return {0: batch, height: step * rows, width: step * columns}, {0: batch}

    def check(self, shape: Shape) -> None:
        """A ValueError if there is no such input."""
        step = self.model.transform.size_divisible
        for name in ("height", "width"):
            side = getattr(shape, name)
            if side < step or side % step:
                raise ValueError(f"{name} must be a multiple of {step}, as the model pads, got {side}")
            if shape.dynamic and side > self.most():
                raise ValueError(f"{name} must be at most {self.most()}, as the model's images, got {side}")
        most = BATCHES if shape.dynamic else sys.maxsize
        if not 1 <= shape.batch <= most:
            raise ValueError(f"batch must be {f'in [1, {most}]' if shape.dynamic else 'at least 1'}, got {shape.batch}")

    def told(self, shape: Shape, categories: Sequence[str] | None) -> dict[str, str]:
        """What whoever runs the file has to know, as JSON."""
        transform = self.model.transform
        told: dict[str, Any] = {
            "fastmask": __version__,
            "categories": None if categories is None else list(categories),
            "image_mean": list(transform.image_mean),
            "image_std": list(transform.image_std),
            "min_size": int(transform.min_size[-1]),
            "max_size": int(transform.max_size),
            "size_divisible": int(transform.size_divisible),
            "batch": BATCHES if shape.dynamic else shape.batch,
            "size": [self.most()] * 2 if shape.dynamic else [shape.height, shape.width],
            "dynamic": shape.dynamic,  # batch and size are then the largest
            "images": "uint8 [B, H, W, 3]" if self.raw else "normalized [B, 3, H, W]",
            "masks": self.masks if self.has_mask else None,
            "outputs": self.outputs(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return {name: json.dumps(value) for name, value in told.items()}
