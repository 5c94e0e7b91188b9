"""RoIPool over a pyramid in torchvision's own parts: the reference of MultiScaleRoIPool, also inside its models."""

import torch
import torchvision
from torch import Tensor
from torchvision.ops.poolers import _infer_scale, initLevelMapper


class ReferenceRoIPool(torchvision.ops.MultiScaleRoIAlign):
    """torchvision's roi_pool, level by level, with the levels and scales of its MultiScaleRoIAlign."""

    def __init__(self, featmap_names: list[str], output_size: int, **levels: int) -> None:
        super().__init__(featmap_names, output_size, 0, **levels)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        maps = [x[name] for name in self.featmap_names if name in x]
        size = [max(shape[i] for shape in image_shapes) for i in (0, 1)]
        scales = [_infer_scale(level, size) for level in maps]
        levels = initLevelMapper(
            *(int(-torch.tensor(scale).log2()) for scale in (scales[0], scales[-1])),
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
        )(boxes)
        if len(maps) == 1:
            return torchvision.ops.roi_pool(maps[0], boxes, self.output_size, scales[0])
        image = torch.cat([torch.full((len(each), 1), i).to(each) for i, each in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], dim=1)
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for i, (level, scale) in enumerate(zip(maps, scales, strict=True)):
            rows = (levels == i).nonzero()[:, 0]
            own = torchvision.ops.roi_pool(level, rois[rows].to(level), self.output_size, scale)
            pooled = pooled.index_copy(0, rows, own)
        return pooled
