"""The keypoint head after pooling: its convolutions, its predictor, and what its heatmaps are to show in training."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import NotScriptable, upcast
from fastmask.models._plain import is_plain


class KeypointRCNNHeads(NotScriptable, nn.Sequential):
    """3x3 convolutions of the given widths, each with a ReLU, on RoI features [N, in_channels, 14, 14]."""

    def __init__(self, in_channels: int, layers: Sequence[int]) -> None:
        blocks: list[nn.Module] = []
        for channels in layers:
            blocks += [nn.Conv2d(in_channels, channels, 3, stride=1, padding=1), nn.ReLU(inplace=True)]
            in_channels = channels
        super().__init__(*blocks)
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


class KeypointRCNNPredictor(NotScriptable, nn.Module):
    """Keypoint features [N, in_channels, 14, 14] -> heatmaps of logits [N, num_keypoints, 56, 56].

    A deconvolution doubles the sides, and bilinear interpolation doubles them again.
    """

    def __init__(self, in_channels: int, num_keypoints: int) -> None:
        super().__init__()
        self.kps_score_lowres = nn.ConvTranspose2d(in_channels, num_keypoints, 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.kps_score_lowres.weight, mode="fan_out", nonlinearity="relu")
        assert self.kps_score_lowres.bias is not None
        nn.init.zeros_(self.kps_score_lowres.bias)
        self.up_scale = 2
        self.out_channels = num_keypoints

    def forward(self, x: Tensor) -> Tensor:
        return self._upsample(self.kps_score_lowres(x))

    def _upsample(self, x: Tensor) -> Tensor:
        """The second doubling alone."""
        scale = float(self.up_scale)
        return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False)


def predict_heatmaps(predictor: nn.Module, hidden: Tensor) -> Tensor:
    """Heatmaps [N, K, H, W] of hidden features; from half types upsampled in float32, which tells neighbors apart."""
    if not is_plain(predictor, KeypointRCNNPredictor):
        heatmaps: Tensor = predictor(hidden)
        return heatmaps
    return predictor._upsample(upcast(predictor.kps_score_lowres(hidden)))


def keypoints_to_heatmap(keypoints: Tensor, rois: Tensor, heatmap_size: int) -> tuple[Tensor, Tensor]:
    """Keypoints of instances -> their pixels in heatmaps over boxes, and which of them are visible and inside.

    Args:
        keypoints (Tensor[N, K, 3]): (x, y, visibility) in pixels of the image.
        rois (Tensor[N, 4]): (x1, y1, x2, y2) there.
        heatmap_size: side of the heatmaps.

    Returns:
        int64 [N, K]: y * heatmap_size + x, or 0 where the second, int64 [N, K], is 0 instead of 1.

    Source: torchvision/models/detection/roi_heads.py; a keypoint on a box's last edge belongs to the last pixel.
    """
    place = (keypoints[..., :2] - rois[:, None, :2]) * (heatmap_size / (rois[:, 2:] - rois[:, :2]))[:, None]
    pixel = torch.where(keypoints[..., :2] == rois[:, None, 2:], heatmap_size - 1, place.floor())
    inside = ((pixel >= 0) & (pixel < heatmap_size)).all(2)  # not NaN
    valid = inside & (keypoints[..., 2] > 0)
    x, y = pixel.masked_fill(~valid[..., None], 0).to(torch.int64).unbind(2)
    return y * heatmap_size + x, valid.to(torch.int64)


def check_square(heatmaps: Tensor) -> None:
    """Raise a ValueError unless heatmaps [N, K, H, W] have one side, as their targets have."""
    height, width = heatmaps.shape[-2:]
    if height != width:
        raise ValueError(f"keypoint_logits must be as high as wide, got {height} x {width}")
