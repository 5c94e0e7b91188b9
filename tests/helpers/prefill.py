"""``PYTHONPATH=tests python -m helpers.prefill DIR``: what the first command of README needs where nothing downloads.

DIR/photo.jpg, a synthetic image, and random weights calibrated on it, where ``TORCH_HOME=DIR`` would hold COCO_V1.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastmask.benchmarks.calibrate import calibrate
from fastmask.models import detection
from fastmask.ops import FrozenBatchNorm2d
from helpers.images import draw_image


def prefill(folder: Path, image: Tensor) -> None:
    """Write an image [3, H, W] in [0, 1] and weights that find something on it into the folder, which is made."""
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
    )
    model = detection.MaskRCNN(backbone, num_classes=91).eval()
    detection._utils.overwrite_eps(model, 0.0)  # as COCO_V1 is built
    calibrate(model, [image])
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight *= 2  # so that something scores above 0.5
    torch.save(model.state_dict(), cache / detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url.rpartition("/")[2])
    Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(folder / "photo.jpg")


if __name__ == "__main__":
    prefill(Path(sys.argv[1]), draw_image(480, 640)[0])
