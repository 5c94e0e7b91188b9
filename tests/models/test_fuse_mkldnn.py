"""oneDNN's fused layers on CPUs: as close to float64 as unfused ones, and nothing is overwritten that is read."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.fusing import kinds, unsettle
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair
from torch import Tensor, nn

import fastmask
from fastmask import Predictor
from fastmask.models import fused, fused_mkldnn, prepare, resnet
from fastmask.models.prepare import choose_fuse, prepare_for_inference

CPU = torch.device("cpu")
needs_mkldnn = pytest.mark.skipif(
    not fused_mkldnn.has_mkldnn(CPU, torch.float32), reason="this PyTorch has no oneDNN for this CPU"
)
NEW = {fused_mkldnn.MkldnnConv2d, fused_mkldnn.MkldnnLinear, fused_mkldnn.MkldnnBoxPredictor}


def with_stage() -> nn.Module:
    """A slim model whose first stage has three blocks of different kinds, one of them grouped."""
    model, norm = slim_model(fastmask, norm="BatchNorm2d"), nn.BatchNorm2d
    blocks = [
        resnet.BasicBlock(16, 16, norm_layer=norm),
        resnet.Bottleneck(16, 4, groups=2, base_width=128, norm_layer=norm),
    ]
    model.backbone.body.layer1 = nn.Sequential(*blocks, resnet.BasicBlock(16, 16, norm_layer=norm))
    return model


MODELS = {
    "slim": lambda: slim_model(fastmask),
    "unet": lambda: slim_model(fastmask, mask_head="unet", mask_classes="agnostic"),
    "mobilenet": lambda: slim_model(fastmask, body="mobilenet"),
    "three blocks, one grouped": with_stage,
}


def outputs(ready: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Feature maps, the RPN's logits and deltas, both heads' features, and the box predictor's outputs."""
    own = next(ready.parameters())
    maps = list(ready.extract_features(pixels.to(own)).maps.values())
    found = [*maps, *(level for levels in ready.rpn.head(maps) for level in levels)]
    heads = ready.roi_heads
    generator = torch.Generator().manual_seed(3)
    for head, side in ((heads.box_head, 7), (heads.mask_head, 14)):
        if head is not None:
            rois = torch.randn(3, maps[0].shape[1], side, side, generator=generator).to(own)
            found.append(head(rois.contiguous(memory_format=torch.channels_last)))
            assert head(rois[:0]).shape == (0, *found[-1].shape[1:])
            if side == 7:
                found += heads.box_predictor(found[-1])
    return [values.double() for values in found]


@needs_mkldnn
@pytest.mark.parametrize("name", MODELS)
def test_close_to_float64(name: str) -> None:
    """In both dtypes no further from float64 than the unfused layers, of a batch, of two sizes, and twice the same."""
    model = MODELS[name]().eval()
    unsettle(model)
    dtypes = [dtype for dtype in (torch.float32, torch.bfloat16) if fused_mkldnn.has_mkldnn(CPU, dtype)]
    with torch.no_grad():
        exact = prepare_for_inference(copy.deepcopy(model).double(), torch.float64)
        for dtype in dtypes:
            ready, plain = (prepare_for_inference(model, dtype, form) for form in ("mkldnn", "off"))
            assert kinds(ready) >= NEW
            assert not kinds(ready) & {fused.FusedConv2d, fused.FusedRPNHead, resnet.BasicBlock, resnet.Bottleneck}
            for size in ((2, 3, 64, 96), (1, 3, 96, 64)):
                pixels = torch.randn(size)
                mine, theirs, expected = (outputs(each, pixels) for each in (ready, plain, exact))
                for again, first, baseline, want in zip(outputs(ready, pixels), mine, theirs, expected, strict=True):
                    assert torch.equal(again, first)
                    scale = want.abs().amax().clamp(min=1) * torch.finfo(dtype).eps
                    assert (first - want).abs().mean() <= 1.5 * (baseline - want).abs().mean() + scale


@needs_mkldnn
def test_what_is_overwritten() -> None:
    """The input of a block that no other module reads: within a stage, not at its beginning, nor behind a hook."""
    model = with_stage().eval()
    ready = prepare_for_inference(model, torch.float32, "mkldnn")
    blocks = {name: one.overwrites for name, one in ready.named_modules() if isinstance(one, fused_mkldnn.MkldnnBlock)}
    assert [name for name, overwrites in blocks.items() if overwrites] == [f"backbone.body.layer1.{i}" for i in (1, 2)]
    model.backbone.body.layer1[0].register_forward_hook(lambda *_: None)
    ready = prepare_for_inference(model, torch.float32, "mkldnn").backbone.body
    assert [getattr(block, "overwrites", None) for block in ready.layer1] == [None, False, True]


@pytest.fixture(scope="module")
def calibrated() -> nn.Module:
    torch.manual_seed(7)
    return slim_pair()[1]


@needs_mkldnn
def test_copies_threads_and_files(calibrated: nn.Module) -> None:
    """Predictions are the same of a copy, of an unpickled program, and from several threads."""
    predictor = Predictor(calibrated, (128, 160), batch=2, masks="soft", fuse="mkldnn")
    images = [(draw_image(128, 160)[0] * 255).to(torch.uint8) for _ in range(4)]
    first = predictor(images)
    model = predictor.program.model
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for ours, theirs in zip(outputs(other, pixels), outputs(model, pixels), strict=True):
                assert torch.equal(ours, theirs)
    with ThreadPoolExecutor(3) as pool:
        for again in pool.map(lambda _: predictor(images), range(3)):
            for ours, theirs in zip(again, first, strict=True):
                assert all(torch.equal(ours[name], theirs[name]) for name in ("boxes", "labels", "scores", "masks"))


def test_chosen_where_it_runs(monkeypatch: pytest.MonkeyPatch, calibrated: nn.Module) -> None:
    """On x86 with oneDNN, unless inductor compiles; nowhere in another dtype."""
    usual = "mkldnn" if fused_mkldnn.has_mkldnn(CPU, torch.float32) else "off"
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert choose_fuse(CPU, torch.float32) == Predictor(calibrated).fuse == usual
    assert choose_fuse(CPU, torch.float32, compile=True) == choose_fuse(CPU, torch.float64) == "off"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert choose_fuse(CPU, torch.float32) == "off"
    for device, dtype in ((CPU, torch.float64), (CPU, torch.float16), (torch.device("cuda"), torch.float32)):
        assert not fused_mkldnn.has_mkldnn(device, dtype)
    with pytest.raises(ValueError, match=r"fuse must be 'off' or 'kernel' .* torch.float64 .*, got 'mkldnn'"):
        prepare_for_inference(calibrated, torch.float64, "mkldnn")
    with pytest.raises(ValueError, match="fuse must not be 'mkldnn' with compile"):
        Predictor(calibrated, fuse="mkldnn", compile=True)
    monkeypatch.setattr(fused_mkldnn, "OPS", ("_not_there",))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert prepare.choose_fuse(CPU, torch.float32) == "off"
