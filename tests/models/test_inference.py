"""Predictions of the models against torchvision's on the same weights: exact in float64, matched in float32, static."""

import pytest
import torch
import torchvision
from helpers.exact import assert_exact, assert_exact_masks, assert_matched
from helpers.images import draw_image
from helpers.slim import MOBILENET_ROI_POOL, calibrate_on_images, slim_pair
from helpers.static import NoDataDependence
from torch import Tensor, nn

import fastmask
from fastmask.evaluation.agreement import matched_share
from fastmask.models.detection._unpad import unpad
from fastmask.models.detection.mask_rcnn import MaskRCNNPredictor

SIZES = {"one": [(100, 140)], "several": [(100, 140), (150, 90), (64, 200)], "tiny": [(33, 40), (20, 24)]}
THRESHOLDS = [0.0, 0.001, 0.05, 0.5, 1.0]


def images(sizes: list[tuple[int, int]]) -> list[Tensor]:
    return [draw_image(*size)[0] for size in sizes]


@torch.no_grad()
def soft_masks(model: nn.Module, images: list[Tensor]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The 28 x 28 probabilities before pasting, and the detections."""
    pasted = []
    module = __import__(type(model.transform).__module__, fromlist=["_"])
    original = module.paste_masks_in_image

    def watch(masks: Tensor, *rest: object) -> Tensor:
        pasted.append(masks)
        return original(masks, *rest)

    module.paste_masks_in_image = watch
    try:
        detections = model(images)
    finally:
        module.paste_masks_in_image = original
    return pasted, detections


def check_exact(theirs: nn.Module, ours: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    theirs.double(), ours.double()
    images = [image.double() for image in images]
    (expected_masks, expected), (actual_masks, actual) = (soft_masks(model, images) for model in (theirs, ours))
    for pair in zip(actual, expected, strict=True):
        assert_exact(*pair)
    for pair in zip(actual_masks, expected_masks, strict=True):
        assert_exact_masks(*pair)
    return expected


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_exact_in_float64(sizes: str, threshold: float) -> None:
    theirs, ours = slim_pair(box_score_thresh=threshold)
    found = check_exact(theirs, ours, images(SIZES[sizes]))
    assert threshold > 0.05 or all(len(p["boxes"]) for p in found)  # no detections would prove nothing
    assert threshold < 1 or not any(len(p["boxes"]) for p in found)


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": (96, 160), "max_size": 400},
        {"fixed_size": (150, 110)},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size_divisible": 64},
        {"box_detections_per_img": 3, "rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 10},
        {
            "rpn_score_thresh": 0.5,
            "rpn_nms_thresh": 0.3,
            "box_nms_thresh": 0.9,
            "bbox_reg_weights": (1.0, 1.0, 2.0, 2.0),
        },
        {"norm": "BatchNorm2d"},
        {"norm": "BatchNorm2d"} | MOBILENET_ROI_POOL,
    ],
    ids=lambda options: ", ".join(value if name == "body" else name for name, value in options.items()),
)
def test_settings_in_float64(options: dict[str, object]) -> None:
    theirs, ours = slim_pair(**options)
    check_exact(theirs, ours, images(SIZES["several"]))


def test_float32_matches() -> None:
    actual, expected = [], []
    for _ in range(4):
        theirs, ours = slim_pair()
        inputs = images(SIZES["several"])
        with torch.no_grad():
            actual += ours(inputs)
            expected += theirs(inputs)
    assert assert_matched(actual, expected) >= 200


def test_infer_is_forward() -> None:
    """The static program with all padding gives the same as forward, which drops it."""
    _, ours = slim_pair()
    inputs = images(SIZES["several"])
    with torch.no_grad():
        batch, _ = ours.transform(inputs)
        sizes = torch.tensor(batch.image_sizes)
        detections = ours.infer(batch.tensors, sizes)
        original = [tuple(image.shape[1:]) for image in inputs]
        static = ours.transform.postprocess(unpad(detections), batch.image_sizes, original)
        assert_matched(static, ours(inputs))
    padding = torch.arange(30) >= detections.count[:, None]
    for field in (detections.boxes, detections.scores, detections.labels, detections.masks):
        assert not field[padding].any()


def test_a_users_own_predictor() -> None:
    """A user's mask predictor computes all classes; only ours is known to need one."""
    _, ours = slim_pair()
    inputs = images(SIZES["one"])
    with torch.no_grad():
        expected = ours(inputs)

        class Own(MaskRCNNPredictor):
            pass

        own = Own(32, 32, 5)
        own.load_state_dict(ours.roi_heads.mask_predictor.state_dict())
        ours.roi_heads.mask_predictor = own
        for actual, wanted in zip(ours(inputs), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [["0"], ["0", "pool"]], ids=["one map", "a map of unknown stride"])
def test_a_users_own_backbone(names: list[str]) -> None:
    """A backbone as in torchvision's documentation: any module with out_channels, its own anchors and poolers."""
    models = []
    for library in (torchvision, fastmask):
        detection, ops = library.models.detection, library.ops
        backbone = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.Tanh(), nn.Conv2d(8, 16, 3, 4, 1), nn.Tanh())
        if len(names) > 1:
            backbone = nn.Sequential(backbone, WithPool())
        backbone.out_channels = 16
        anchors = detection.anchor_utils.AnchorGenerator(((16, 32, 64),) * len(names), ((0.5, 1.0, 2.0),) * len(names))
        models.append(
            detection.MaskRCNN(
                backbone,
                num_classes=3,
                rpn_anchor_generator=anchors,
                box_roi_pool=ops.MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
                mask_roi_pool=ops.MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
                mask_head=detection.mask_rcnn.MaskRCNNHeads(16, (256,), 1),
                rpn_post_nms_top_n_test=200,  # masks take most of the time
                min_size=128,
                box_score_thresh=0.1,
                box_detections_per_img=1000,
            ).eval()
        )
    theirs, ours = models
    inputs = images([(128, 160)])
    with torch.no_grad():
        maps = theirs.backbone(theirs.transform(inputs)[0].tensors)
        logits = theirs.rpn.head([maps] if isinstance(maps, Tensor) else list(maps.values()))[0]
        # logits up to 6: apart from each other, and no sigmoid of 1.0, whose ties torchvision orders as it pleases
        theirs.rpn.head.cls_logits.weight *= 6 / max(float(logit.abs().max()) for logit in logits)
        theirs.roi_heads.box_predictor.cls_score.weight *= 8
    ours.load_state_dict(theirs.state_dict())
    theirs.double(), ours.double()
    inputs = [image.double() for image in inputs]
    with torch.no_grad():
        (actual,), (expected,) = ours(inputs), theirs(inputs)
    # not in order: two proposals smaller than a cell are one RoI of a cell, and tied
    assert len(actual["boxes"]) == len(expected["boxes"]) > 0
    assert matched_share(actual, expected) == 1.0


class WithPool(nn.Module):
    """A feature map, and the same at half its size."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"0": x, "pool": nn.functional.max_pool2d(x, 2)}


def test_norms_are_folded_without_a_trace() -> None:
    """Hooks, other weights and training mode have the same effect as without folding."""
    _, ours = slim_pair("BatchNorm2d")
    x = torch.randn(1, 3, 64, 64)
    seen = []
    with torch.no_grad():
        folded = ours.backbone.body(x)["3"]
        hook = ours.backbone.body["layer2"][0].bn1.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(ours.backbone.body(x)["3"], folded, rtol=1e-4, atol=1e-4)
        hook.remove()
        assert seen
        ours.backbone.body["bn1"].weight.mul_(2)
        assert not torch.allclose(ours.backbone.body(x)["3"], folded, rtol=1e-2)
        ours.backbone.train()
        before = ours.backbone.body["bn1"].running_mean.clone()
        ours.backbone.body(x)
        assert not torch.equal(ours.backbone.body["bn1"].running_mean, before)


class Infer(nn.Module):
    """The module to export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.infer(pixels, sizes))


def batch_of(*sizes: tuple[int, int], height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(len(sizes), 3, height, width), torch.tensor(sizes)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["non-strict", "strict"])
def test_exports_with_dynamic_sizes(strict: bool) -> None:
    _, ours = slim_pair()
    batch, rows, columns = torch.export.dims("batch", "rows", "columns", min=1, max=42)
    shapes = ({0: batch, 2: 32 * rows, 3: 32 * columns}, {0: batch})
    example = batch_of((120, 160), (128, 150), height=128, width=160)
    others = [example, batch_of((190, 200), height=192, width=224)]
    if torch.__version__ >= "2.12":  # 2.11's pooling guards on whether half the size is even
        others.append(batch_of((96, 192), (64, 64), (90, 100), height=96, width=192))
    with torch.no_grad():
        program = torch.export.export(Infer(ours), example, dynamic_shapes=shapes, strict=strict)
        for other in others:
            for actual, expected in zip(program.module()(*other), Infer(ours)(*other), strict=True):
                torch.testing.assert_close(actual, expected)
    assert not [node for node in program.graph.nodes if "unbacked_bindings" in node.meta]


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_boxes_stay_float32_in_bfloat16(how: str) -> None:
    """Feature maps may be half; anchors, boxes and scores may not: bfloat16 has 8 bits for 200 pixels."""
    _, ours = slim_pair(box_score_thresh=0.0)  # on noise, few scores may be above any other
    pixels, sizes = batch_of((120, 160), (128, 150), height=128, width=160)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        if how == "weights":
            ours, pixels = ours.bfloat16(), pixels.bfloat16()
        outputs = ours.rpn.predict(ours.extract_features(pixels), (128, 160))
        proposals, found = ours.rpn.propose(outputs, sizes), ours.infer(pixels, sizes)
    assert {logit.dtype for logit in outputs.logits} == {torch.bfloat16}
    for name, values in {
        "anchors": outputs.anchors,
        "proposals": proposals.boxes,
        "objectness": proposals.scores,
        "boxes": found.boxes,
        "scores": found.scores,
        "masks": found.masks,
    }.items():
        assert values.dtype == torch.float32, name
    full = ours.rpn.anchor_generator.anchors((726, 726), [torch.zeros(1, 1, 2, 2)] * 5)
    half = ours.rpn.anchor_generator.anchors((726, 726), [torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)] * 5)
    assert all(torch.equal(*pair) for pair in zip(full, half, strict=True))
    inside = found.boxes[found.scores > 0]
    assert len(inside) > 20
    assert (inside != inside.bfloat16()).float().mean() > 0.5


@pytest.mark.parametrize("family", [pytest.param({}, marks=pytest.mark.slow, id="resnet"), MOBILENET_ROI_POOL], ids=str)
def test_compiles_to_one_graph(family: dict[str, str]) -> None:  # test_compile.py has the ResNet's as well
    _, ours = slim_pair(**family)
    example = batch_of((120, 160), (128, 150), height=128, width=160)
    with torch.no_grad():
        compiled = torch.compile(ours.infer, fullgraph=True, backend="aot_eager")(*example)
        for actual, expected in zip(compiled, ours.infer(*example), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("family", [{}, MOBILENET_ROI_POOL], ids=str)
def test_infer_has_no_data_dependent_op(family: dict[str, str]) -> None:
    _, ours = slim_pair(**family)
    with torch.no_grad(), NoDataDependence():
        ours.infer(*batch_of((120, 160), (128, 150), height=128, width=160))
    with pytest.raises(AssertionError), NoDataDependence():  # the check itself works
        torch.ones(3)[torch.ones(3) > 0]


DEEP = ("resnet34", "resnet101", "resnet152", "resnext101_32x8d")


def build_theirs(name: str, options: dict[str, object]) -> nn.Module:
    """By torchvision's builder, or from its parts where it has none."""
    models = torchvision.models.detection
    if hasattr(models, name):
        return torchvision.models.get_model(name, **options)
    kind, body = name.removesuffix("_fpn").split("_", 1)
    norms = {"norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
    backbone = models.backbone_utils.resnet_fpn_backbone(backbone_name=body, weights=None, **norms)
    settings = {key: value for key, value in options.items() if key[:7] != "weights"}
    return {"maskrcnn": models.MaskRCNN, "fasterrcnn": models.FasterRCNN}[kind](backbone, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "maskrcnn_resnet50_fpn",
        pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
        pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow),
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        pytest.param("fasterrcnn_mobilenet_v3_large_fpn", marks=pytest.mark.slow),
        "maskrcnn_resnet18_fpn",
        *(pytest.param(f"maskrcnn_{body}_fpn", marks=pytest.mark.slow) for body in DEEP),
        *(pytest.param(f"fasterrcnn_{body}_fpn", marks=pytest.mark.slow) for body in ("resnet18", *DEEP)),
    ],
)
def test_full_models_in_float64(name: str) -> None:
    """The full architectures, small images, few classes."""
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, "min_size": 128, "box_score_thresh": 0.3}
    options |= {"rpn_post_nms_top_n_test": 200, "box_detections_per_img": 20}  # the heads take most of the time
    theirs = build_theirs(name, options).eval()
    calibrate_on_images(theirs)
    ours = fastmask.models.get_model(name, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    found = check_exact(theirs, ours, images([(100, 130)]))
    assert len(found[0]["boxes"])
