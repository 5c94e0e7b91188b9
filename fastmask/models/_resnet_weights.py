"""URLs of torchvision's ImageNet weights, for detection backbones; torchvision.models.resnet's names."""

from torch import nn

from fastmask.models._api import Weights, WeightsEnum


def no_preset() -> nn.Module:
    """The preset of a classifier: there is none."""
    raise NotImplementedError("these weights start detection backbones; fastmask has no preset for classification")


def imagenet_weights(file: str, num_params: int, accuracy: float) -> Weights:
    """Weights of a classifier, with its top-1 accuracy on ImageNet as torchvision publishes it."""
    metrics = {"ImageNet-1K": {"acc@1": accuracy}}
    meta = {"num_params": num_params, "num_classes": 1000, "_metrics": metrics}
    return Weights(f"https://download.pytorch.org/models/{file}", no_preset, meta)


class ResNet18_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnet18."""

    IMAGENET1K_V1 = imagenet_weights("resnet18-f37072fd.pth", 11689512, 69.758)
    DEFAULT = IMAGENET1K_V1


class ResNet34_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnet34."""

    IMAGENET1K_V1 = imagenet_weights("resnet34-b627a593.pth", 21797672, 73.314)
    DEFAULT = IMAGENET1K_V1


class ResNet50_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnet50."""

    IMAGENET1K_V1 = imagenet_weights("resnet50-0676ba61.pth", 25557032, 76.13)
    IMAGENET1K_V2 = imagenet_weights("resnet50-11ad3fa6.pth", 25557032, 80.858)
    DEFAULT = IMAGENET1K_V2


class ResNet101_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnet101."""

    IMAGENET1K_V1 = imagenet_weights("resnet101-63fe2227.pth", 44549160, 77.374)
    IMAGENET1K_V2 = imagenet_weights("resnet101-cd907fc2.pth", 44549160, 81.886)
    DEFAULT = IMAGENET1K_V2


class ResNet152_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnet152."""

    IMAGENET1K_V1 = imagenet_weights("resnet152-394f9c45.pth", 60192808, 78.312)
    IMAGENET1K_V2 = imagenet_weights("resnet152-f82ba261.pth", 60192808, 82.284)
    DEFAULT = IMAGENET1K_V2


class ResNeXt50_32X4D_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnext50_32x4d."""

    IMAGENET1K_V1 = imagenet_weights("resnext50_32x4d-7cdf4587.pth", 25028904, 77.618)
    IMAGENET1K_V2 = imagenet_weights("resnext50_32x4d-1a0047aa.pth", 25028904, 81.198)
    DEFAULT = IMAGENET1K_V2


class ResNeXt101_32X8D_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnext101_32x8d."""

    IMAGENET1K_V1 = imagenet_weights("resnext101_32x8d-8ba56ff5.pth", 88791336, 79.312)
    IMAGENET1K_V2 = imagenet_weights("resnext101_32x8d-110c445d.pth", 88791336, 82.834)
    DEFAULT = IMAGENET1K_V2


class ResNeXt101_64X4D_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of resnext101_64x4d."""

    IMAGENET1K_V1 = imagenet_weights("resnext101_64x4d-173b62eb.pth", 83455272, 83.246)
    DEFAULT = IMAGENET1K_V1


class Wide_ResNet50_2_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of wide_resnet50_2."""

    IMAGENET1K_V1 = imagenet_weights("wide_resnet50_2-95faca4d.pth", 68883240, 78.468)
    IMAGENET1K_V2 = imagenet_weights("wide_resnet50_2-9ba9bcbe.pth", 68883240, 81.602)
    DEFAULT = IMAGENET1K_V2


class Wide_ResNet101_2_Weights(WeightsEnum):  # noqa: N801
    """ImageNet weights of wide_resnet101_2."""

    IMAGENET1K_V1 = imagenet_weights("wide_resnet101_2-32ee1156.pth", 126886696, 78.848)
    IMAGENET1K_V2 = imagenet_weights("wide_resnet101_2-d733dc28.pth", 126886696, 82.51)
    DEFAULT = IMAGENET1K_V2
