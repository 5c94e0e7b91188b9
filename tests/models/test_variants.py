"""U-Nets as mask heads, and one mask for all classes: definition, number of parameters, files, bad options."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.slim import MASK_VARIANTS, slim_model
from helpers.slim_c4 import ours_c4
from torch import Tensor, nn

import fastmask
from fastmask.models import detection, load_checkpoint
from fastmask.models.detection._mask_head import MaskRCNNHeads
from fastmask.models.detection._unet_head import UNetMaskHead


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_unet_has_the_parameters_of_what_it_replaces() -> None:
    """To 15 %, whatever the widths, with norms or without; the pages have the first two."""
    with torch.device("meta"):
        heads = {"fcn": [], "unet": []}
        for kind, found in heads.items():
            found.append(detection.maskrcnn_resnet50_fpn(weights_backbone=None, mask_head=kind).roi_heads.mask_head)
            found.append(detection.maskrcnn_slim_fpn(mask_head=kind).roi_heads.mask_head)
            found.append(detection.maskrcnn_resnet50_fpn_v2(mask_head=kind).roi_heads.mask_head)
        assert [count(head) for head in heads["unet"][:2]] == [2_274_176, 114_964]
        for sizes in ((32, 32, 2), (256, 32, 2), (64, 256, 4), (256, 64, 1), (2048, 256, 4), (16, 16, 8)):
            heads["unet"].append(UNetMaskHead(*sizes))
            heads["fcn"].append(MaskRCNNHeads(sizes[0], [sizes[1]] * sizes[2], 1))
    for ours, replaced in zip(heads["unet"], heads["fcn"], strict=True):
        assert 0.85 < count(ours) / count(replaced) < 1.15
    assert any(isinstance(module, nn.BatchNorm2d) for module in heads["unet"][2].modules())


def test_a_unet_is_its_definition() -> None:
    """Two convolutions, pooling, two, a deconvolution, what was there before beside it, and two; sides are even."""
    head = UNetMaskHead(5, 16, 3).double()
    x = torch.randn(3, 5, 14, 10, dtype=torch.float64, requires_grad=True)
    state = head.state_dict()

    def convolve(x: Tensor, name: str) -> Tensor:
        for i in range(2):
            x = F.conv2d(x, state[f"{name}.{i}.0.weight"], state[f"{name}.{i}.0.bias"], padding=1).clamp(min=0)
        return x

    skip = convolve(x, "encode")
    pooled = skip.unflatten(3, (5, 2)).unflatten(2, (7, 2)).amax((3, 5))
    up = torch.einsum("ncyx,cdij->ndyixj", convolve(pooled, "bottom"), state["up.weight"])
    up = up.flatten(4, 5).flatten(2, 3) + state["up.bias"][:, None, None]
    torch.testing.assert_close(head(x), convolve(torch.cat((up, skip), 1), "decode"))
    assert head(x[:0]).shape == (0, 16, 14, 10)
    with pytest.raises(ValueError, match="x must have even sides, got 7 x 6"):
        head(torch.zeros(1, 5, 7, 6, dtype=torch.float64))


def test_c4_models_have_agnostic_masks_and_no_unet() -> None:
    predictor = {"mask_predictor": detection.mask_rcnn.MaskRCNNPredictor(128, 16, 1)}
    model = ours_c4(box_score_thresh=0.0, **predictor)
    with torch.no_grad():
        (found,) = model.detect([torch.rand(3, 96, 96)])
    assert found["masks"].shape == (20, 1, 14, 14)
    with torch.device("meta"):
        own = detection.maskrcnn_resnet50_c4(weights_backbone=None, num_classes=7, mask_classes="agnostic")
        assert own.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 1
        with pytest.raises(ValueError, match="mask_head must be fcn in a C4 model, where res5 is in its place, got 'u"):
            detection.maskrcnn_resnet50_c4(weights_backbone=None, mask_head="unet")


def test_files_of_other_mask_branches(tmp_path: Path) -> None:
    """They are named; to fine-tune, what is of another kind starts anew, and all else is loaded."""
    plain, variant = slim_model(fastmask), slim_model(fastmask, **MASK_VARIANTS)
    agnostic = slim_model(fastmask, mask_classes="agnostic")
    torch.save(variant.state_dict(), tmp_path / "variant.pth")
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    for model, file, message in (
        (plain, "variant", "mask_head must be unet with .*variant.pth, got fcn .new_predictors=True loads all but"),
        (variant, "plain", "mask_head must be fcn with .*plain.pth, got unet"),
        (agnostic, "plain", "mask_classes must be per_class with .*plain.pth, got agnostic"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(model, tmp_path / f"{file}.pth")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        load_checkpoint(model, tmp_path / f"{file}.pth", new_predictors=True)
        theirs = torch.load(tmp_path / f"{file}.pth")
        for name, value in model.state_dict().items():
            fresh = "predictor" in name or ("mask_head" in name and model is not agnostic)
            assert torch.equal(value, before[name] if fresh else theirs[name])
    options = fastmask.models.Checkpoint(tmp_path / "variant.pth").meta["options"]
    assert options == MASK_VARIANTS  # although the file is nobody's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_head": "mlp"}, "mask_head must be fcn, unet or a module, got 'mlp'"),
        ({"sampling_ratio": (2, 2)}, r"sampling_ratio must be an int or one for each of 4 maps, got \[2, 2\]"),
        ({"mask_classes": "one"}, "mask_classes must be one of per_class, agnostic, got 'one'"),
        ({"rpn_loss": "l2"}, "rpn_loss must be one of bce, focal, got 'l2'"),
        ({"box_loss": "iou"}, "box_loss must be one of smooth_l1, l1, weighted_smooth_l1, giou, diou, ciou, got 'iou'"),
        ({"mask_loss": "iou"}, "mask_loss must be one of bce, dice, bce_dice, got 'iou'"),
        (
            {"mask_predictor": nn.Identity(), "mask_classes": "agnostic"},
            "mask_classes must be per_class where mask_predictor is given, got 'agnostic'",
        ),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        detection.maskrcnn_slim_fpn(**options)


def test_no_mask_branch_takes_its_options() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="mask_loss must be given to a Mask R-CNN only, got a F"),
    ):
        detection.fasterrcnn_resnet18_fpn(weights_backbone=None, mask_loss="dice")
