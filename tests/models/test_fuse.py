"""Fused layers of a prepared model: the same results as without; test_fuse_left_alone.py has what stays as it is."""

from typing import Any

import pytest
import torch
from helpers.fusing import FORMS, NEW, close, kinds, unsettle
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair
from helpers.static import NoDataDependence
from torch import Tensor, nn

import fastmask
from fastmask import Predictor
from fastmask.evaluation.agreement import matched_share
from fastmask.inference.program import Inputs, Program
from fastmask.models import fused
from fastmask.models.detection import faster_rcnn, rpn
from fastmask.models.prepare import prepare_for_inference
from fastmask.models.resnet import BasicBlock, Bottleneck
from fastmask.ops.feature_pyramid_network import FeaturePyramidNetwork

MODELS = {
    "maskrcnn_resnet50_fpn": lambda: get("maskrcnn_resnet50_fpn"),
    "maskrcnn_resnet50_fpn_v2": lambda: get("maskrcnn_resnet50_fpn_v2"),
    "resnet18": lambda: with_body("resnet18"),
    "resnext50": lambda: with_body("resnext50_32x4d"),
    "slim": lambda: slim_model(fastmask, mask_head="unet", mask_classes="agnostic"),
    "mobilenet": lambda: slim_model(fastmask, body="mobilenet"),
}


def get(name: str) -> nn.Module:
    return fastmask.models.get_model(name, weights=None, weights_backbone=None, num_classes=3)


def with_body(name: str) -> nn.Module:
    backbone = fastmask.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return faster_rcnn.FasterRCNN(backbone, num_classes=3)


@pytest.mark.parametrize("name", MODELS)
def test_equal_in_float64(name: str) -> None:
    """Feature maps, RPN outputs and both heads are equal; all layers but the mask predictor's are fused in a copy."""
    model = MODELS[name]().eval().double()
    unsettle(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = prepare_for_inference(model, torch.float64)
    pixels = torch.randn(2, 3, 72, 104, dtype=torch.float64)
    with torch.no_grad():
        expected = list(plain.extract_features(pixels).maps.values())
        for form in ("kernel", "cudnn"):
            ready = prepare_for_inference(model, torch.float64, form)
            left = kinds(ready) & {BasicBlock, Bottleneck, FeaturePyramidNetwork, rpn.RPNHead, nn.ReLU, nn.Conv2d}
            assert left == ({nn.ReLU, nn.Conv2d} if ready.roi_heads.has_mask() else set())
            assert (fused.CudnnConv2d in kinds(ready)) == (form == "cudnn")
            maps = list(ready.extract_features(pixels).maps.values())
            for actual, level in zip(maps, expected, strict=True):  # and that none of the levels is missing
                close(actual, level)
            for actual, levels in zip(ready.rpn.head(maps), plain.rpn.head(expected), strict=True):
                for ours, theirs in zip(actual, levels, strict=True):
                    close(ours, theirs)
            check_heads(ready, plain, maps[0].shape[1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def check_heads(ready: nn.Module, plain: nn.Module, channels: int) -> None:
    heads = [(ready.roi_heads.box_head, plain.roi_heads.box_head, 7)]
    if ready.roi_heads.has_mask():
        heads.append((ready.roi_heads.mask_head, plain.roi_heads.mask_head, 14))
    for ours, theirs, side in heads:
        for num in (5, 0):
            rois = torch.randn(num, channels, side, side, dtype=torch.float64)
            rois = rois.contiguous(memory_format=torch.channels_last)
            assert ours(rois).shape == theirs(rois).shape
            if num:
                close(ours(rois), theirs(rois))
    assert type(ready.roi_heads.box_predictor) is fused.FusedBoxPredictor
    width = ready.roi_heads.box_predictor.weight.shape[1]
    for num in (5, 0):
        for rows in (torch.randn(num, width, dtype=torch.float64), torch.randn(num, width, 1, 1, dtype=torch.float64)):
            outputs = (heads.box_predictor(rows) for heads in (ready.roi_heads, plain.roi_heads))
            for actual, expected in zip(*outputs, strict=True):
                assert actual.shape == expected.shape
                if num:
                    close(actual, expected)


@pytest.fixture(scope="module")
def calibrated() -> nn.Module:
    torch.manual_seed(7)
    return slim_pair()[1]


@FORMS
def test_predictor_meets_the_model(form: Any, calibrated: nn.Module) -> None:
    """They match by the matched rule in float32, with masks of 300 detections where there are masks."""
    images = [(draw_image(128, 160)[0] * 255).to(torch.uint8) for _ in range(10)]
    pairs = [Predictor(calibrated, (128, 160), batch=5, masks="float", fuse=fuse)(images) for fuse in ("off", form)]
    share = [matched_share(ours, theirs) * len(theirs["boxes"]) for theirs, ours in zip(*pairs, strict=True)]
    total = sum(len(found["boxes"]) for found in pairs[0])
    assert total >= 200
    assert sum(share) / total >= 0.99


def test_forms_are_chosen(calibrated: nn.Module) -> None:
    """test_fuse_mkldnn.py has what "auto" is on a CPU."""
    assert not kinds(Predictor(calibrated, fuse="off").program) & NEW
    assert Predictor(calibrated, fuse="kernel").fuse == "kernel"
    with pytest.raises(ValueError, match="fuse must be one of"):
        Predictor(calibrated, fuse="all")


@FORMS
def test_nothing_depends_on_data(form: Any, calibrated: nn.Module) -> None:
    sizes = torch.tensor([[120, 160], [128, 150]])
    program = Program(prepare_for_inference(calibrated, torch.float32, form), "rle", 0.5, 2048)
    with torch.no_grad(), NoDataDependence():
        program(Inputs(torch.randn(2, 3, 128, 160), sizes, sizes * 2))


def test_channels_stay_last_and_nothing_is_copied(device: torch.device) -> None:
    """Matrix products read and return views of the feature maps, of batches too."""
    ready = prepare_for_inference(get("maskrcnn_resnet50_fpn").to(device), torch.bfloat16, "kernel")
    seen = []
    for module in ready.backbone.modules():
        if isinstance(module, fused.FusedConv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    with torch.no_grad():
        pixels = torch.randn(2, 3, 64, 64, dtype=torch.bfloat16, device=device)
        ready.backbone(pixels.contiguous(memory_format=torch.channels_last))
    assert len(seen) == 53 + 8
    for module, inputs, output in seen:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (*inputs, output) if t is not None)
        if isinstance(module, fused.Pointwise):
            rows = inputs[0].permute(0, 2, 3, 1).flatten(0, 2)
            assert rows.data_ptr() == inputs[0].data_ptr()
    assert sum(isinstance(module, fused.Pointwise) for module, _, _ in seen) == 32 + 1 + 4


def test_class_logits_and_deltas_are_one_tensor(device: torch.device) -> None:
    """Its rows fit cuBLAS's aligned kernels, and the deltas of the boxes are a view."""
    ready = prepare_for_inference(get("maskrcnn_resnet50_fpn").to(device), torch.bfloat16, "kernel")
    with torch.no_grad():
        logits, deltas = ready.roi_heads.box_predictor(torch.randn(9, 1024, dtype=torch.bfloat16, device=device))
    assert logits.shape == (9, 3)
    assert deltas.shape == (9, 12)
    assert logits.stride() == deltas.stride() == (16, 1)
    assert deltas.unflatten(1, (-1, 4)).data_ptr() == deltas.data_ptr()
    assert deltas.data_ptr() + 12 * 2 == logits.data_ptr()


def test_exports_keep_convolutions(calibrated: nn.Module) -> None:
    """An exported model has no fused layer, and so none of their ops."""
    pytest.importorskip("pycocotools")
    from fastmask.export.module import ExportableModel

    model = ExportableModel(calibrated)
    assert not kinds(model) & NEW
    assert sum(type(module) is nn.Conv2d for module in model.modules()) == sum(
        type(module) is nn.Conv2d for module in calibrated.modules()
    )


def test_float32_keeps_convolutions() -> None:
    """Convolutions may use TF32, where matrix products may not."""
    assert fused.Pointwise not in kinds(prepare_for_inference(slim_model(fastmask), torch.float32, "kernel"))


def test_anchors_are_flattened_without_a_copy(calibrated: nn.Module) -> None:
    ready = prepare_for_inference(calibrated, torch.float32, "kernel")
    with torch.no_grad():
        maps = list(ready.extract_features(torch.randn(2, 3, 64, 96)).maps.values())
        for values, channels in zip(ready.rpn.head(maps), (1, 4), strict=True):
            for level in values:
                flat = rpn.flatten_anchors(level, channels)
                assert flat.untyped_storage().data_ptr() == level.untyped_storage().data_ptr()


@pytest.mark.gpu
@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype: torch.dtype, form: Any) -> None:
    """Feature maps, logits, deltas and both heads' features are as close to float64's as the unfused model's."""
    model = get("maskrcnn_resnet50_fpn").eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias"):
                values.uniform_(-0.1, 0.1)

    def outputs(ready: nn.Module) -> list[Tensor]:
        own = next(ready.parameters())
        maps = list(ready.extract_features(pixels.to(own)).maps.values())
        found = [*maps, *(level for levels in ready.rpn.head(maps) for level in levels)]
        heads = (ready.roi_heads.box_head, 7), (ready.roi_heads.mask_head, 14)
        found += [
            head(rois[..., :side, :side].to(own).contiguous(memory_format=torch.channels_last)) for head, side in heads
        ]
        return [values.double().cpu() for values in found]

    pixels, rois = torch.randn(2, 3, 128, 192), torch.randn(9, 256, 14, 14)
    with torch.no_grad():
        expected = outputs(prepare_for_inference(model.double(), torch.float64))
        model.float().cuda()
        torch.cuda.empty_cache()
        filled = [torch.full((size,), float("nan"), device="cuda") for size in (2**12, 2**16, 2**20, 2**24, 2**26)]
        del filled  # what the allocator gives from now on is NaN
        plain, fused_ones = (outputs(prepare_for_inference(model, dtype, fuse)) for fuse in ("off", form))
    for actual, baseline, exact in zip(fused_ones, plain, expected, strict=True):
        assert actual.isfinite().all()
        scale = exact.abs().mean()
        assert (actual - exact).abs().mean() <= 1.5 * (baseline - exact).abs().mean() + 1e-6 * scale


@pytest.mark.gpu
@pytest.mark.parametrize("mask_buckets", [False, True], ids=["whole", "buckets"])
@pytest.mark.parametrize("form", ["auto", "kernel", "cudnn"])
def test_captured(form: Any, mask_buckets: bool, calibrated: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictors of each form match the unfused one, float32 without TF32; "auto" is cuDNN's convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = [(draw_image(128, 160)[0] * 255).to(torch.uint8) for _ in range(10)]
    try:
        calibrated.cuda()
        plain, other = (
            Predictor(calibrated, (128, 160), 5, torch.float32, "float", fuse=one, mask_buckets=mask_buckets)
            for one in ("off", form)
        )
        assert other.fuse == ("cudnn" if form == "auto" else form)
        pairs = list(zip(other(images), plain(images), strict=True))
    finally:
        calibrated.cpu()
    total = sum(len(theirs["boxes"]) for _, theirs in pairs)
    assert total >= 200
    assert sum(matched_share(ours, theirs) * len(theirs["boxes"]) for ours, theirs in pairs) / total >= 0.99
