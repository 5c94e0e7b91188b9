"""The backbone of the C4 models: a ResNet up to its stage of stride 16, whose last stage is left for the heads."""

from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.models._utils import IntermediateLayerGetter
from fastmask.models.resnet import ResNet

C4 = "0"  # name of its only feature map


class C4Backbone(NotScriptable, nn.Module):
    """Stem and first three stages of a ResNet: conv1 to conv4_x (arXiv 1512.03385, table 1), one map of stride 16.

    Args:
        backbone: the classifier, whose stages become this module's, in ``body``, by the same names; ``layer4``, its
            pooling and its classifier do not belong to it.

    Attributes:
        out_channels: channels of the map, 1024 of ResNet-50.
        strides: image pixels per pixel of the map.
    """

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(backbone, {"layer3": C4})
        self.out_channels = backbone.inplanes // 2
        self.strides = {C4: backbone.strides[2]}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] -> {"0": [B, out_channels, H / 16, W / 16]}, sizes rounded up."""
        maps: dict[str, Tensor] = self.body(x)
        return maps
