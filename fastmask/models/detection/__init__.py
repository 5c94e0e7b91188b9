"""Detection models: torchvision.models.detection's names."""

from fastmask.models.detection.c4 import (
    fasterrcnn_resnet50_c4,
    fasterrcnn_resnet101_c4,
    maskrcnn_resnet50_c4,
    maskrcnn_resnet101_c4,
)
from fastmask.models.detection.efficientnet_rcnn import (
    MaskRCNN_EfficientNet_Lite0_FPN_Weights,
    maskrcnn_efficientnet_lite0_fpn,
)
from fastmask.models.detection.faster_rcnn import (
    FasterRCNN,
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)
from fastmask.models.detection.keypoint_rcnn import (
    KeypointRCNN,
    KeypointRCNN_ResNet50_FPN_Weights,
    keypointrcnn_resnet50_fpn,
)
from fastmask.models.detection.mask_rcnn import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from fastmask.models.detection.matterport import maskrcnn_matterport
from fastmask.models.detection.resnet_fpn import (
    fasterrcnn_resnet18_fpn,
    fasterrcnn_resnet34_fpn,
    fasterrcnn_resnet101_fpn,
    fasterrcnn_resnet152_fpn,
    fasterrcnn_resnext101_32x8d_fpn,
    keypointrcnn_resnet101_fpn,
    keypointrcnn_resnext101_32x8d_fpn,
    maskrcnn_resnet18_fpn,
    maskrcnn_resnet34_fpn,
    maskrcnn_resnet101_fpn,
    maskrcnn_resnet152_fpn,
    maskrcnn_resnext101_32x8d_fpn,
)
from fastmask.models.detection.slim import (
    KeypointRCNN_Slim_FPN_Weights,
    MaskRCNN_Slim_FPN_Weights,
    keypointrcnn_slim_fpn,
    maskrcnn_slim_fpn,
)
from fastmask.models.detection.timm_rcnn import fasterrcnn_timm, maskrcnn_timm

__all__ = [
    "FasterRCNN",
    "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights",
    "FasterRCNN_MobileNet_V3_Large_FPN_Weights",
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "KeypointRCNN",
    "KeypointRCNN_ResNet50_FPN_Weights",
    "KeypointRCNN_Slim_FPN_Weights",
    "MaskRCNN",
    "MaskRCNN_EfficientNet_Lite0_FPN_Weights",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "MaskRCNN_ResNet50_FPN_Weights",
    "MaskRCNN_Slim_FPN_Weights",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet18_fpn",
    "fasterrcnn_resnet34_fpn",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet101_c4",
    "fasterrcnn_resnet101_fpn",
    "fasterrcnn_resnet152_fpn",
    "fasterrcnn_resnext101_32x8d_fpn",
    "fasterrcnn_timm",
    "keypointrcnn_resnet50_fpn",
    "keypointrcnn_resnet101_fpn",
    "keypointrcnn_resnext101_32x8d_fpn",
    "keypointrcnn_slim_fpn",
    "maskrcnn_efficientnet_lite0_fpn",
    "maskrcnn_matterport",
    "maskrcnn_resnet18_fpn",
    "maskrcnn_resnet34_fpn",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_c4",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnet152_fpn",
    "maskrcnn_resnext101_32x8d_fpn",
    "maskrcnn_slim_fpn",
    "maskrcnn_timm",
]
