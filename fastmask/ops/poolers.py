"""RoIAlign and RoIPool over named feature maps; torchvision.ops.poolers' names, and MultiScaleRoIPool."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable, rois_from_boxes
from fastmask.ops.roi_align import follow_format, multilevel_roi_align
from fastmask.ops.roi_pool import multilevel_roi_pool


def infer_scale(feature: Tensor, image_height: int) -> float:
    """The power of two nearest to a feature map's height over the tallest unpadded image's, as in torchvision."""
    if min(feature.shape[-2], image_height) < 1:
        raise ArgumentError(f"maps and images must have pixels, got heights {feature.shape[-2]} and {image_height}")
    return 2.0 ** round(math.log2(feature.shape[-2] / image_height))


class MultiScaleRoIAlign(NotScriptable, nn.Module):
    """RoIAlign of each box on the feature map that fits its size (FPN, eq. 1).

    Args:
        featmap_names: names of the feature maps to pool from, finest first.
        output_size: bins as an int or (height, width).
        sampling_ratio, aligned: see :func:`fastmask.ops.roi_align`; ``sampling_ratio`` may be one for each map.
        canonical_scale, canonical_level: a box of sqrt(area) ``canonical_scale`` goes to level ``canonical_level``.

    Attributes:
        scales: feature pixels per image pixel of each map; None (the default) infers them at every call. torchvision
            infers them at its first call and keeps them, also for later images of another size. Set them to export with
            dynamic sizes: symbolic sizes cannot be inferred from.

    Source: torchvision/ops/poolers.py.
    """

    sampling_ratio: int | Sequence[int] | None
    _pooling = "roi_align"  # the models' box_pooling

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int | Sequence[int],
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = aligned
        self.scales: list[float] | None = None

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """RoIAlign of the boxes of each image.

        Args:
            x (dict[str, Tensor[N, C, H_l, W_l]]): feature maps; those not in ``featmap_names`` are ignored.
            boxes (list[Tensor[L, 4]]): (x1, y1, x2, y2) of each image, in pixels.
            image_shapes: (height, width) of each image before padding, from which the scales are inferred.

        Returns:
            Tensor[K, C, output_size[0], output_size[1]]: in the order of the boxes, dtype and memory format of the
            first map; see :func:`fastmask.ops.multilevel_roi_align`.

        Raises:
            ValueError: no map of that name, no images, or a shape, dtype, device or size does not fit.
        """
        return _pool(
            x,
            boxes,
            image_shapes,
            self.featmap_names,
            self.output_size,
            self.sampling_ratio,
            self.scales,
            self.canonical_scale,
            self.canonical_level,
            self.aligned,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(featmap_names={self.featmap_names}, "
            f"output_size={self.output_size}, sampling_ratio={self.sampling_ratio}{', aligned=True' * self.aligned})"
        )


class MultiScaleRoIPool(MultiScaleRoIAlign):
    """RoIPool (Fast R-CNN, section 2.1) in the place of RoIAlign; arguments and calls as :class:`MultiScaleRoIAlign`.

    For comparisons as Mask R-CNN's table 2c has them; torchvision has no such module.
    """

    _pooling = "roi_pool"

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__(
            featmap_names, output_size, 0, canonical_scale=canonical_scale, canonical_level=canonical_level
        )
        self.sampling_ratio = None  # a maximum takes no samples

    def __repr__(self) -> str:
        return f"{type(self).__name__}(featmap_names={self.featmap_names}, output_size={self.output_size})"


def pool_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int | Sequence[int] | None,
    canonical_scale: float,
    canonical_level: float,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign over a pyramid, or RoIPool where ``sampling_ratio`` is None -> [K, C, h, w], channels-last."""
    if sampling_ratio is None:
        return multilevel_roi_pool(
            features, rois, output_size, scales, canonical_scale=canonical_scale, canonical_level=canonical_level
        )
    return multilevel_roi_align(
        features,
        rois,
        output_size,
        scales,
        sampling_ratio,
        aligned,
        canonical_scale=canonical_scale,
        canonical_level=canonical_level,
    )


@torch.fx.wrap
def _pool(
    x: dict[str, Tensor],
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
    featmap_names: list[str],
    output_size: tuple[int, ...],
    sampling_ratio: int | Sequence[int] | None,
    scales: list[float] | None,
    canonical_scale: int,
    canonical_level: int,
    aligned: bool = False,
) -> Tensor:
    """The module's forward as a function, which torch.fx records as one node."""
    features = [feature for name, feature in x.items() if name in featmap_names]
    if not features:
        raise ArgumentError(f"x must have one of the maps {featmap_names}, got {list(x)}")
    dtype = features[0].dtype
    features = [feature if feature.dtype == dtype else feature.to(dtype) for feature in features]  # autocast mixes them
    if scales is None:
        if not image_shapes:
            raise ArgumentError("image_shapes must not be empty, got []")
        tallest = max(height for height, _ in image_shapes)
        scales = [infer_scale(feature, tallest) for feature in features]
    rois = rois_from_boxes(boxes, features[0])
    pooled = pool_levels(features, rois, output_size, scales, sampling_ratio, canonical_scale, canonical_level, aligned)
    return follow_format(pooled, features[0])
