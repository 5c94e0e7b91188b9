"""C4 models against torchvision's classes put together to one: detections, losses and gradients; static; one res5."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exact import assert_exact, assert_exact_masks
from helpers.images import draw_image
from helpers.slim_c4 import build_slim, c4_pair, names_of, ours_c4
from helpers.static import NoDataDependence
from helpers.training import draw_batch, draw_first, train_pair
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fastmask
from fastmask.inference import load_pretrained
from fastmask.models import detection, load_checkpoint, save_weights
from fastmask.models.detection import _roi_stages
from fastmask.models.detection._unpad import unpad
from fastmask.structures import Targets, pad_targets
from fastmask.training.ema import ModelEma

SIZES = [(100, 140), (96, 64)]


def images(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [draw_image(*size)[0].to(dtype) for size in SIZES]


def padded(model: Any, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    batch, _ = model.transform(images)
    return batch.tensors, torch.tensor(batch.image_sizes)


@pytest.mark.parametrize(("masked", "norm"), [(True, "FrozenBatchNorm2d"), (False, "BatchNorm2d")])
def test_detections_are_torchvisions(masked: bool, norm: str) -> None:
    """In float64, also where inference reads the RoIs in parts, and by the methods on lists."""
    theirs, ours = (model.double() for model in c4_pair(norm, masked, box_score_thresh=0.0))
    assert ours.roi_heads.has_mask() == masked
    inputs = images()
    with torch.no_grad():
        expected = theirs(inputs)
        assert all(len(each["boxes"]) for each in expected)
        soft = ours.detect(inputs)
        for pair in zip(ours(inputs), expected, strict=True):
            assert_exact(*pair)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_roi_stages, "MAX_ROIS", 17)
            for actual, wanted in zip(ours.detect(inputs), soft, strict=True):
                assert_exact(actual, wanted)
        ours.rpn.register_forward_hook(lambda *_: None)  # which the static program would not call
        for actual, wanted in zip(ours.detect(inputs), soft, strict=True):
            assert_exact(actual, wanted)
            if masked:
                assert wanted["masks"].shape[1:] == (1, 14, 14)
                assert_exact_masks(actual["masks"], wanted["masks"])


@pytest.mark.parametrize("way", ["static", "as on a GPU", "on lists"])
def test_losses_and_gradients_are_torchvisions(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the mask branch takes what res5 has computed of the positive samples: also in rows with padding."""
    theirs, ours = train_pair(c4_pair)
    if way == "as on a GPU":
        monkeypatch.setattr(detection.losses, "is_readable", lambda _: False)
    if way == "on lists":
        ours.rpn.register_forward_hook(lambda *_: None)
    calls: list[int] = []
    ours.roi_heads.res5.register_forward_hook(lambda *_: calls.append(1))
    batch = draw_batch(empty=True)
    expected, actual = theirs(*batch), ours(*batch)
    assert len(calls) == 1
    assert list(actual) == list(expected)
    for name, loss in expected.items():
        assert loss.detach() > 0
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)
    for losses in (expected, actual):
        sum(losses.values()).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[names_of(name)[0]].grad, rtol=1e-7, atol=1e-7)


def test_other_mask_features_are_pooled_apart() -> None:
    """Where the poolers differ, the mask branch has features of its own, and torchvision's losses."""

    def pair(**options: Any) -> tuple[Any, Any]:
        theirs, ours = c4_pair(**options)
        for model in (theirs, ours):
            model.roi_heads.mask_roi_pool.sampling_ratio = 1
        return theirs, ours

    theirs, ours = train_pair(pair)
    assert not ours.roi_heads.shares_rois()
    batch = draw_batch()
    expected, actual = theirs(*batch), ours(*batch)
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)


def test_no_object_at_all() -> None:
    theirs, ours = train_pair(c4_pair)
    inputs, targets = draw_batch()
    targets = [{key: value[:0] for key, value in target.items()} for target in targets]
    expected, actual = theirs(inputs, targets), ours(inputs, targets)
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)
    sum(actual.values()).backward()


def test_programs_are_static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference, in parts, and the losses: one graph each, the same values, no op that depends on data."""
    torch._dynamo.reset()
    _, ours = c4_pair(rpn_post_nms_top_n_train=40, box_batch_size_per_image=16)
    monkeypatch.setattr(_roi_stages, "MAX_ROIS", 50)
    inputs, targets = draw_batch(torch.float32)
    with torch.no_grad():
        arguments = padded(ours, inputs)
        with NoDataDependence():
            expected = ours.infer(*arguments)
        assert expected.masks.shape == (3, 20, 14, 14)
        compiled = torch.compile(ours.infer, fullgraph=True, backend="eager")(*arguments)
        for actual, wanted in zip(compiled, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
        for actual, wanted in zip(unpad(expected), ours.detect(inputs), strict=True):
            torch.testing.assert_close(actual["scores"], wanted["scores"], rtol=1e-4, atol=1e-5)
    ours.train()
    draw_first(ours)
    batch, resized = ours.transform(inputs, targets)
    training = (batch.tensors, torch.tensor(batch.image_sizes), pad_targets(resized, batch.tensors, True))
    losses = ours.losses(*training)
    compiled_losses = torch.compile(ours.losses, fullgraph=True, backend="eager")(*training)
    for name, loss in losses.items():
        torch.testing.assert_close(compiled_losses[name], loss, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with NoDataDependence():
        ours.losses(*training)


def test_res5_is_one_module_with_one_name(tmp_path: Path) -> None:
    """In the state dict, the files, an optimizer and an average of the weights: each weight once."""
    model = ours_c4("BatchNorm2d")
    state = model.state_dict()
    assert len({value.data_ptr() for value in state.values() if value.numel()}) == len(state)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if "layer4" in name or "box_head" in name or "mask_head" in name] == []
    assert sum(".res5." in name for name in names) == 18  # of a BasicBlock with a shortcut and a Bottleneck
    assert len(names) == len(list(model.parameters())) == len({id(values) for values in model.parameters()})
    save_weights(state, tmp_path / "model.safetensors")
    torch.save({"model": state}, tmp_path / "model.pth")
    for file in ("model.safetensors", "model.pth"):
        other = ours_c4("BatchNorm2d")
        load_checkpoint(other, tmp_path / file)
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    other.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*roi_heads.res5.0.conv1.weight"):
        other.load_state_dict({key: value for key, value in state.items() if ".res5." not in key})
    ema = ModelEma(model, decay=0.5)
    before = model.roi_heads.res5[0].conv1.weight.detach().clone()
    with torch.no_grad():
        model.roi_heads.res5[0].conv1.weight += 1
    ema.update()
    share = 1 - min(0.5, 1 / 10)
    torch.testing.assert_close(ema.model.roi_heads.res5[0].conv1.weight, before + share)


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("kind", ["mask", "faster"])
def test_builders(kind: str, depth: int) -> None:
    """Stages, anchors, numbers of proposals and trained layers; parameters as counted from detectron2's definitions."""
    name = f"{kind}rcnn_resnet{depth}_c4"
    with torch.device("meta"):
        model: Any = fastmask.models.get_model(name, weights=None, weights_backbone=None, num_classes=81)
    blocks = {50: 6, 101: 23}[depth]
    assert [len(model.backbone.body[f"layer{i}"]) for i in (1, 2, 3)] == [3, 4, blocks]
    assert "layer4" not in model.backbone.body
    assert (model.backbone.out_channels, model.backbone.strides) == (1024, {"0": 16})
    first, *rest = model.roi_heads.res5
    assert (first.conv1.stride, first.conv2.stride, len(rest)) == ((1, 1), (2, 2), 2)
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert [tuple(conv.weight.shape) for conv in (model.rpn.head.conv[0][0], model.rpn.head.cls_logits)] == [
        (1024, 1024, 3, 3),
        (15, 1024, 1, 1),
    ]
    assert model.rpn._pre_nms_top_n == {"training": 12000, "testing": 6000}
    assert model.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert model.roi_heads.has_mask() == (kind == "mask")
    assert all(values.requires_grad for values in model.parameters())
    assert sum(values.numel() for values in model.parameters()) == count_parameters(depth, kind == "mask")


def test_roi_pool() -> None:
    """Both branches follow ``box_pooling``."""
    options = {"weights_backbone": None, "num_classes": 3, "min_size": 64, "max_size": 96, "box_score_thresh": 0.0}
    options |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    model = detection.maskrcnn_resnet50_c4(box_pooling="roi_pool", **options)
    pooler = model.roi_heads.box_roi_pool
    assert type(pooler) is type(model.roi_heads.mask_roi_pool) is fastmask.ops.MultiScaleRoIPool
    assert pooler.output_size == (14, 14)
    with torch.no_grad():
        (found,) = model.eval().detect([torch.rand(3, 64, 96)])
    assert found["masks"].shape[1:] == (1, 14, 14)


def count_parameters(depth: int, masked: bool, classes: int = 80) -> int:
    """Weights of detectron2's R_50_C4 and R_101_C4, from the shapes of their layers, for so many classes.

    Ours has deltas of the background as well, as torchvision's predictors, and its masks.
    """
    stage_blocks = {"res2": 3, "res3": 4, "res4": {50: 6, 101: 23}[depth], "res5": 3}
    total, channels = 3 * 64 * 49 + 2 * 64, 64
    for i, blocks in enumerate(stage_blocks.values()):
        width, out = 64 << i, 256 << i
        for block in range(blocks):
            convs = channels * width + 9 * width * width + width * out + (channels * out if block == 0 else 0)
            total += convs + 2 * (2 * width + out + (out if block == 0 else 0))
            channels = out
    rpn = 9 * 1024 * 1024 + 1024 + (1024 + 1) * 15 * 5
    box = (2048 + 1) * (classes + 1 + 4 * classes)
    mask = 4 * 2048 * 256 + 256 + (256 + 1) * classes
    background = (2048 + 1) * 4 + ((256 + 1) if masked else 0)
    return total + rpn + box + (mask if masked else 0) + background


def test_weights_of_a_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's norms stay frozen, its first stages as well; no weights are published, which the error says."""
    build_slim(monkeypatch)
    model = detection.maskrcnn_resnet50_c4(weights=None, weights_backbone=None, num_classes=4)
    assert {type(m) for m in model.roi_heads.res5[0].modules()} >= {torch.nn.BatchNorm2d}
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    file = tmp_path / "frozen.safetensors"
    save_weights(state, file, builder="maskrcnn_resnet50_c4", options={"min_size": 64, "max_size": 96})
    loaded = detection.maskrcnn_resnet50_c4(weights=file)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert {type(m) for m in loaded.roi_heads.res5[0].modules()} >= {fastmask.ops.FrozenBatchNorm2d}
    fixed = {".".join(name.split(".")[:3]) for name, values in loaded.named_parameters() if not values.requires_grad}
    assert fixed == {"backbone.body.conv1", "backbone.body.layer1"}
    none = detection.maskrcnn_resnet50_c4(weights=file, trainable_backbone_layers=0)
    assert not any(values.requires_grad for values in none.roi_heads.res5.parameters())
    ready, _ = load_pretrained(file, device="cpu")
    assert ready.transform.min_size == (64,)
    with pytest.raises(ValueError, match="weights must be a file, got 'COCO_V1'"):
        detection.maskrcnn_resnet50_c4(weights="COCO_V1")


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "gmac"), [(50, 1012), (101, 1092)])
def test_at_full_size(depth: int, gmac: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Inference and a training step of the builders' models on 800 x 1333, with the multiply-adds that README has."""
    model: Any = fastmask.models.get_model(f"maskrcnn_resnet{depth}_c4", weights=None, weights_backbone=None).eval()
    pixels, sizes = torch.randn(1, 3, 800, 1344), torch.tensor([[800, 1333]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detections = model.infer(pixels, sizes)
    assert detections.masks.shape == (1, 100, 14, 14)
    assert round(counter.get_total_flops() / 2e9) == gmac
    boxes = torch.tensor([[[100.0, 100, 500, 400], [700, 200, 1200, 700]]])
    masks = torch.zeros(2, 800, 1344, dtype=torch.uint8)
    masks[0, 100:400, 100:500] = masks[1, 300:700, 700:1200] = 1
    targets = Targets(boxes, torch.tensor([[1, 2]]), masks, torch.tensor([2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model.train().losses(pixels, sizes, targets)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(values.grad.isfinite().all() and values.isfinite().all() for values in model.parameters())
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print({name: round(float(loss.detach()), 3) for name, loss in losses.items()}, f"{peak:.1f} GB at most")
