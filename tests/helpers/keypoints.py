"""torchvision's heatmaps_to_keypoints in the dtype of its inputs; its own stores float32 whatever they are."""

import torch
from torch import Tensor


def decode_with_torch(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Heatmaps [N, K, h, w] and boxes [N, 4] -> keypoints [N, K, 3], scores [N, K], by PyTorch's own interpolation."""
    number, points = heatmaps.shape[:2]
    keypoints, scores = heatmaps.new_ones(number, points, 3), heatmaps.new_zeros(number, points)
    for n in range(number):
        width, height = (boxes[n, 2:] - boxes[n, :2]).clamp(min=1).tolist()
        size = (-int(-height // 1), -int(-width // 1))
        resized = torch.nn.functional.interpolate(heatmaps[n, None], size=size, mode="bicubic")[0]
        scores[n], place = resized.flatten(1).max(1)
        x, y = (place % size[1]).to(boxes) + 0.5, (place // size[1]).to(boxes) + 0.5
        keypoints[n, :, 0] = x * (width / size[1]) + boxes[n, 0]
        keypoints[n, :, 1] = y * (height / size[0]) + boxes[n, 1]
    return keypoints, scores
