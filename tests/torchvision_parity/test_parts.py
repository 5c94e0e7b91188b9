"""Parts of torchvision's detection models against ours: one seed gives the same weights and outputs, and the methods
that a part calls of itself are those that a subclass may override."""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fastmask

LIBRARIES = (torchvision, fastmask)
BOXES = [torch.tensor([[2.0, 3, 40, 50], [0, 0, 7, 9], [10, 20, 11, 22]]), torch.tensor([[5.0, 5, 25, 35]])]
TARGETS = [
    {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "masks": torch.ones(len(boxes), *size).byte()}
    for boxes, size in zip(BOXES, [(60, 80), (50, 40)], strict=True)
]


def draw_maps(*channels: int) -> "OrderedDict[str, Tensor]":
    """Feature maps of two images of 64 x 96 pixels."""
    sizes = ((16, 24), (8, 12), (4, 6), (2, 3))
    return OrderedDict(
        (str(i), torch.randn(2, c, *size)) for i, (c, size) in enumerate(zip(channels, sizes, strict=False))
    )


def draw_images() -> list[Tensor]:
    return [torch.rand(3, 60, 80), torch.rand(3, 50, 40)]


def build_resnet(library: ModuleType, block: str, **options: Any) -> nn.Module:
    resnet = library.models.resnet
    return resnet.ResNet(getattr(resnet, block), [1, 2, 1, 1], num_classes=5, **options)


def build_residual(library: ModuleType, *config: Any) -> nn.Module:
    mobilenet = library.models.mobilenetv3
    return mobilenet.InvertedResidual(mobilenet.InvertedResidualConfig(*config), nn.BatchNorm2d)


def build_backbone(library: ModuleType) -> nn.Module:
    stages = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)]
    body = nn.Sequential(OrderedDict((f"layer{i}", stage) for i, stage in enumerate(stages)))
    layers, extra = {"layer0": "a", "layer2": "c"}, library.ops.feature_pyramid_network.LastLevelP6P7(8, 8)
    build = library.models.detection.backbone_utils.BackboneWithFPN
    return build(body, layers, [4, 8], 8, extra_blocks=extra, norm_layer=nn.BatchNorm2d)


def build_transform(library: ModuleType, *args: Any, training: bool = False, **options: Any) -> nn.Module:
    build = library.models.detection.transform.GeneralizedRCNNTransform
    return build(*args, [0.4, 0.5, 0.6], [0.2, 0.3, 0.2], **options).train(training)


def run_transform(module: nn.Module, _: ModuleType) -> Any:
    images = draw_images()
    batch, targets = module(images, TARGETS)
    masks = [torch.linspace(0, 1, 28 * 28).view(1, 1, 28, 28).expand(len(boxes), -1, -1, -1) for boxes in BOXES]
    results = [{"boxes": boxes, "masks": mask} for boxes, mask in zip(BOXES, masks, strict=True)]
    restored = module.postprocess(results, batch.image_sizes, [(60, 80), (50, 40)])
    return batch.tensors, batch.image_sizes, targets, restored


def run_anchors(module: nn.Module, library: ModuleType) -> Any:
    images = library.models.detection.image_list.ImageList(torch.zeros(2, 3, 64, 96), [(60, 80), (64, 96)])
    maps = list(draw_maps(1, 1, 1).values())
    sizes, strides = [each.shape[-2:] for each in maps], [(4, 4), (8, 8), (16, 16)]
    return module(images, maps), module.num_anchors_per_location(), module.grid_anchors(sizes, strides)


def run_coder(coder: Any, _: ModuleType) -> Any:
    others = [boxes + torch.rand_like(boxes) for boxes in BOXES]
    deltas = 3 * torch.randn(4, 3 * 4)  # beyond the largest growth
    encoded = coder.encode(BOXES, others)
    return encoded, coder.decode(deltas, BOXES), coder.decode_single(deltas, torch.cat(BOXES))


def call(*inputs: Callable[[], Any]) -> Callable[[Any, ModuleType], Any]:
    """Run a module in training, then in eval mode."""
    return lambda module, _: [module.train(training)(*(draw() for draw in inputs)) for training in (True, False)]


Parts = ModuleType  # torchvision or fastmask
CASES: dict[str, tuple[Callable[[Parts], Any], Callable[[Any, Parts], Any]]] = {
    "RPNHead": (
        lambda v: v.models.detection.rpn.RPNHead(4, 3, conv_depth=2),
        call(lambda: list(draw_maps(4, 4).values())),
    ),
    "AnchorGenerator": (lambda v: v.models.detection.anchor_utils.AnchorGenerator((8, 16, 33), (0.5, 1.0)), None),
    "AnchorGenerator of several sizes": (
        lambda v: v.models.detection.anchor_utils.AnchorGenerator(((8, 10), (16,), (33, 50)), ((0.5, 1.0),) * 3),
        None,
    ),
    "TwoMLPHead": (lambda v: v.models.detection.faster_rcnn.TwoMLPHead(36, 5), call(lambda: torch.randn(7, 4, 3, 3))),
    "FastRCNNConvFCHead": (
        lambda v: v.models.detection.faster_rcnn.FastRCNNConvFCHead((4, 3, 3), [6, 5], [8, 7]),
        call(lambda: torch.randn(7, 4, 3, 3)),
    ),
    "FastRCNNConvFCHead with norms": (
        lambda v: v.models.detection.faster_rcnn.FastRCNNConvFCHead((4, 3, 3), [6], [8], nn.BatchNorm2d),
        call(lambda: torch.randn(7, 4, 3, 3)),
    ),
    "FastRCNNPredictor": (
        lambda v: v.models.detection.faster_rcnn.FastRCNNPredictor(4, 3),
        call(lambda: torch.randn(7, 4, 1, 1)),
    ),
    "MaskRCNNHeads": (
        lambda v: v.models.detection.mask_rcnn.MaskRCNNHeads(4, (6, 5), 2, nn.BatchNorm2d),
        call(lambda: torch.randn(3, 4, 14, 14)),
    ),
    "MaskRCNNPredictor": (
        lambda v: v.models.detection.mask_rcnn.MaskRCNNPredictor(4, 5, 3),
        call(lambda: torch.randn(3, 4, 14, 14)),
    ),
    "ResNet, BasicBlock": (
        lambda v: build_resnet(v, "BasicBlock", zero_init_residual=True),
        call(lambda: torch.randn(2, 3, 64, 64)),
    ),
    "ResNet, Bottleneck": (
        lambda v: build_resnet(
            v, "Bottleneck", groups=2, width_per_group=8, replace_stride_with_dilation=[False, True, True]
        ),
        call(lambda: torch.randn(2, 3, 64, 64)),
    ),
    "MobileNetV3": (
        lambda v: v.models.mobilenet_v3_large(
            num_classes=5, width_mult=0.25, reduced_tail=True, dilated=True, dropout=0
        ),
        call(lambda: torch.randn(2, 3, 64, 64)),
    ),
    "MobileNetV3, small": (
        lambda v: v.models.mobilenet_v3_small(num_classes=5, width_mult=0.3, norm_layer=nn.BatchNorm2d, dropout=0.0),
        call(lambda: torch.randn(2, 3, 64, 64)),
    ),
    "InvertedResidual": (
        lambda v: build_residual(v, 12, 3, 40, 12, True, "HS", 1, 2, 1.5),
        call(lambda: torch.randn(2, 24, 9, 9)),
    ),
    "BackboneWithFPN": (build_backbone, call(lambda: torch.randn(2, 3, 64, 96))),
    "GeneralizedRCNNTransform": (lambda v: build_transform(v, 90, 100), run_transform),
    "GeneralizedRCNNTransform, several sizes": (lambda v: build_transform(v, (50, 70), 100), run_transform),
    "GeneralizedRCNNTransform, fixed size": (lambda v: build_transform(v, 9, 9, fixed_size=(70, 50)), run_transform),
    "GeneralizedRCNNTransform in training": (lambda v: build_transform(v, [90], 95, training=True), run_transform),
    "GeneralizedRCNNTransform, sizes kept": (
        lambda v: build_transform(v, 90, 100, training=True, size_divisible=16, _skip_resize=True),
        run_transform,
    ),
    "BoxCoder": (lambda v: v.models.detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0)), run_coder),
}


@pytest.mark.parametrize("name", CASES)
def test_same_weights_and_outputs(name: str, seed: int) -> None:
    build, run = CASES[name]
    outputs, states = [], []
    for library in LIBRARIES:
        torch.manual_seed(seed)
        part = build(library)
        states.append(part.state_dict() if isinstance(part, nn.Module) else {})
        torch.manual_seed(seed + 1)
        outputs.append((run or run_anchors)(part, library))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert list(states[0]) == list(states[1])
    theirs, ours = outputs
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_methods_that_subclasses_override_are_called(name: str) -> None:
    build, run = CASES[name]
    called = []
    for library in LIBRARIES:
        part = build(library)
        called.append(note_calls(part))
        (run or run_anchors)(part, library)
    theirs, ours = called
    assert theirs <= ours


def note_calls(part: Any) -> set[str]:
    """The methods of its class that a part calls from now on; it becomes an object of a subclass that overrides all."""
    called: set[str] = set()

    def override(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return method(self, *args, **kwargs)

        return noted

    kind = type(part)
    methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and name[:2] != "__"}
    part.__class__ = type(kind.__name__, (kind,), {name: override(name, method) for name, method in methods.items()})
    return called
