"""Anchors (Faster R-CNN, section 3.1.1); torchvision.models.detection.anchor_utils' names."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable, upcast
from fastmask.models.detection.image_list import ImageList

DEFAULT_DEVICE = torch.device("cpu")


class AnchorGenerator(NotScriptable, nn.Module):
    """Boxes of given sizes and aspect ratios (height / width) at every cell of each feature map.

    Args:
        sizes: sizes in pixels for each feature map; a flat tuple means one size a map.
        aspect_ratios: ratios for each feature map; a flat tuple serves all of them.

    Source: torchvision/models/detection/anchor_utils.py. Strides are whole pixels, padded size // map size per axis.
    """

    exact = False  # the models' exact_anchors

    def __init__(
        self,
        sizes: Sequence[Sequence[int]] | Sequence[int] = ((128, 256, 512),),
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float] = ((0.5, 1.0, 2.0),),
    ) -> None:
        super().__init__()
        self.sizes = tuple(size if isinstance(size, list | tuple) else (size,) for size in sizes)
        nested = isinstance(aspect_ratios[0], list | tuple)
        self.aspect_ratios = aspect_ratios if nested else (aspect_ratios,) * len(self.sizes)
        self.cell_anchors = [
            self.generate_anchors(size, ratio)  # type: ignore[arg-type]
            for size, ratio in zip(self.sizes, self.aspect_ratios, strict=False)
        ]

    def generate_anchors(
        self,
        scales: Sequence[int],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = DEFAULT_DEVICE,
    ) -> Tensor:
        """The anchors of one cell around (0, 0), rounded to whole pixels -> [ratios * scales, 4]."""
        scale = torch.as_tensor(scales, dtype=dtype, device=device)
        height_ratio = torch.sqrt(torch.as_tensor(aspect_ratios, dtype=dtype, device=device))
        widths = ((1 / height_ratio)[:, None] * scale).flatten()
        heights = (height_ratio[:, None] * scale).flatten()
        return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()

    def num_anchors_per_location(self) -> list[int]:
        """Anchors at a cell of each feature map."""
        return [len(s) * len(a) for s, a in zip(self.sizes, self.aspect_ratios, strict=False)]  # type: ignore[arg-type]

    def anchors(self, image_size: Sequence[int], maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors [H_l * W_l * A, 4] of each feature map [N, C, H_l, W_l] for padded images of (height, width).

        In the maps' dtype, but float32 for half types, which cannot count the pixels of an image.
        """
        self._check_number(maps)
        grids = []
        for level, (cell, feature) in enumerate(zip(self.cell_anchors, maps, strict=True)):
            grid = feature.shape[-2:]
            grids.append(_shift(cell.to(upcast(feature[:0])), grid, self._find_strides(level, image_size, grid)))
        return grids

    def all_anchors(self, image_size: Sequence[int], maps: Sequence[Tensor]) -> Tensor:
        """:meth:`anchors` of all feature maps, one after the other, [A, 4]."""
        return torch.cat(self.anchors(image_size, maps))

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the anchors of one cell to a dtype and device, for good."""
        self.cell_anchors = [cell.to(device=device, dtype=dtype) for cell in self.cell_anchors]

    def grid_anchors(self, grid_sizes: Sequence[Sequence[int]], strides: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Anchors [H_l * W_l * A, 4] of maps of (height, width), from ``cell_anchors`` as they are.

        ``strides``: image pixels a cell, (down, across) in each map.
        """
        return list(map(_shift, self.cell_anchors, grid_sizes, strides))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """All anchors [A, 4] for each image of the list; they are the same for all."""
        self._check_number(feature_maps)
        device = feature_maps[0].device
        self.set_cell_anchors(upcast(feature_maps[0][:0]).dtype, device)
        padded = image_list.tensors.shape[-2:]
        grids = [feature.shape[-2:] for feature in feature_maps]
        strides = [
            [torch.tensor(stride, device=device) for stride in self._find_strides(level, padded, grid)]
            for level, grid in enumerate(grids)
        ]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)

    def _find_strides(self, level: int, image_size: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
        """Image pixels a cell, (down, across), in a map of (height, width) of padded images of (height, width)."""
        return image_size[0] // grid[0], image_size[1] // grid[1]

    def _check_number(self, maps: Sequence[Tensor]) -> None:
        if len(maps) != len(self.cell_anchors):
            raise ArgumentError(
                f"sizes and aspect_ratios must have one entry a feature map ({len(maps)}), got {len(self.cell_anchors)}"
            )


class ExactAnchorGenerator(AnchorGenerator):
    """Anchors that are not rounded to whole pixels, on grids of given strides.

    torchvision's P6 of an image of 800 pixels has 13 rows, 61 pixels apart; here it has a stride of 64.

    Args:
        sizes, aspect_ratios: see :class:`AnchorGenerator`.
        strides: image pixels a cell of each feature map.

    Source: detectron2's DefaultAnchorGenerator with offset 0, whose anchors of a cell have another order: all ratios of
    the first size before the second size.
    """

    exact = True

    def __init__(
        self,
        sizes: Sequence[Sequence[int]] | Sequence[int],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
    ) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides = tuple(strides)
        if len(self.strides) != len(self.sizes):
            raise ValueError(f"strides must be one a feature map ({len(self.sizes)}), got {len(self.strides)}")

    def generate_anchors(
        self,
        scales: Sequence[int],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = DEFAULT_DEVICE,
    ) -> Tensor:
        """The anchors of one cell around (0, 0) -> [ratios * scales, 4], rounded to the dtype alone."""
        roots = [math.sqrt(ratio) for ratio in aspect_ratios]
        sides = [(scale / root, scale * root) for root in roots for scale in scales]
        return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=dtype, device=device)

    def _find_strides(self, level: int, image_size: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
        return self.strides[level], self.strides[level]


def place_exactly(generator: AnchorGenerator, backbone: nn.Module) -> ExactAnchorGenerator:
    """The same anchors without rounding, on the strides of a backbone's maps; each further map halves the last one.

    Raises:
        ValueError: the generator is of another kind, or the backbone does not know its strides.
    """
    if type(generator) is not AnchorGenerator:
        raise ValueError(f"exact_anchors must be False with anchors of another kind, got {type(generator).__name__}")
    known = getattr(backbone, "strides", None)
    if not known:
        raise ValueError("exact_anchors must be False with a backbone that does not know its strides, got True")
    strides = list(known.values())[: len(generator.sizes)]
    while len(strides) < len(generator.sizes):
        strides.append(2 * strides[-1])
    ratios: Any = generator.aspect_ratios
    return ExactAnchorGenerator(generator.sizes, ratios, strides)


def _shift(cell: Tensor, grid: Sequence[int], strides: Sequence[int | Tensor]) -> Tensor:
    """Anchors of one cell [A, 4] at every cell of a grid of (height, width) -> [height * width * A, 4]."""
    height, width = grid
    x = torch.arange(width, device=cell.device) * strides[1]
    y = torch.arange(height, device=cell.device) * strides[0]
    corner = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=2)
    shift = corner.repeat(1, 1, 2)  # [H, W, 4]
    return (shift[:, :, None] + cell).flatten(0, 2)
