"""Detection models: torchvision.models.detection's names."""

from fastmask.models.detection.c4 import (
    fasterrcnn_resnet50_c4,
    fasterrcnn_resnet101_c4,
    maskrcnn_resnet50_c4,
    maskrcnn_resnet101_c4,
)
from fastmask.models.detection.faster_rcnn import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)
from fastmask.models.detection.mask_rcnn import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from fastmask.models.detection.slim import MaskRCNN_Slim_FPN_Weights, maskrcnn_slim_fpn

__all__ = [
    "FasterRCNN",
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "MaskRCNN",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "MaskRCNN_ResNet50_FPN_Weights",
    "MaskRCNN_Slim_FPN_Weights",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet101_c4",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_c4",
    "maskrcnn_slim_fpn",
]
