"""The losses and their gradients against torchvision's on the same samples; static; targets checked; tutorial."""

import pytest
import torch
import torchvision
from helpers.slim import MASK_VARIANTS, MOBILENET_ROI_POOL, slim_model, slim_pair
from helpers.static import NoDataDependence
from helpers.training import draw_batch, draw_first, train_pair
from torch import Tensor, nn

import fastmask
from fastmask.models.detection.losses import repeat_valid_rows
from fastmask.models.detection.sampling import BalancedPositiveNegativeSampler, Matcher
from fastmask.structures import pad_targets

LOSSES = {"rpn_loss": "focal", "box_loss": "ciou", "mask_loss": "bce_dice"}
VARIANTS = MOBILENET_ROI_POOL | MASK_VARIANTS | LOSSES


@pytest.mark.parametrize("num", [9, 4], ids=["more than outputs", "fewer"])
@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "with a hook"])
def test_box_head_of_channels_last_features(num: int, hooked: bool) -> None:
    """Values and gradients are those of flat features in float64; a layer with hooks is called as it is."""
    head = fastmask.models.detection.faster_rcnn.TwoMLPHead(5 * 3 * 2, 6).double()
    theirs = torchvision.models.detection.faster_rcnn.TwoMLPHead(5 * 3 * 2, 6).double()
    theirs.load_state_dict(head.state_dict())
    calls: list[int] = []
    if hooked:
        head.fc6.register_forward_hook(lambda *_: calls.append(1))
    plain = torch.randn(num, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    last = plain.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    ours, expected = head(last), theirs(plain)
    assert len(calls) == hooked
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for outputs in (ours, expected):
        outputs.square().sum().backward()
    torch.testing.assert_close(last.grad, plain.grad, rtol=1e-12, atol=1e-12)
    for mine, other in zip(head.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)
    if num > 6 and not hooked:
        assert last.grad.is_contiguous(memory_format=torch.channels_last)  # nothing was put into another order


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "one image without"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "BatchNorm2d"},
        {"box_batch_size_per_image": 400, "box_positive_fraction": 0.5},
        {"_skip_resize": True},
    ],
    ids=lambda options: ", ".join(options) or "defaults",
)
def test_losses_and_gradients_are_torchvisions(options: dict[str, object], empty: bool) -> None:
    check_losses(options, empty)


@pytest.mark.parametrize(
    "options", [MOBILENET_ROI_POOL | MASK_VARIANTS, {"body": "mobilenet", "norm": "BatchNorm2d"}], ids=str
)
def test_losses_and_gradients_of_mobilenets(options: dict[str, object]) -> None:
    check_losses(options, empty=True)


def check_losses(options: dict[str, object], empty: bool) -> None:
    theirs, ours = train_pair(**options)
    images, targets = draw_batch(empty=empty)
    expected, actual = theirs(images, targets), ours(images, targets)
    assert list(actual) == list(expected)
    for name, loss in expected.items():
        assert loss.detach() > 0
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)
    for losses in (expected, actual):
        sum(losses.values()).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-7, atol=1e-7)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, dict(theirs.named_buffers())[name])


def test_no_object_at_all() -> None:
    theirs, ours = train_pair()
    images, targets = draw_batch()
    targets = [{key: value[:0] for key, value in target.items()} for target in targets]
    expected, actual = theirs(images, targets), ours(images, targets)
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)
    sum(actual.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())


def test_losses_in_eval_mode() -> None:
    """Validation losses, requested in vision #1574, leave all norms unchanged."""
    _, ours = slim_pair("BatchNorm2d")
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    with torch.no_grad():
        losses = ours.losses_of(*draw_batch(torch.float32))
    assert list(losses) == ["loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
    assert all(loss.isfinite() for loss in losses.values())
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())


def static_arguments(model: nn.Module) -> tuple[Tensor, Tensor, object]:
    batch, resized = model.transform(*draw_batch(torch.float32))
    return batch.tensors, torch.tensor(batch.image_sizes), pad_targets(resized, batch.tensors, True)


@pytest.mark.parametrize("family", [pytest.param({}, marks=pytest.mark.slow, id="resnet"), VARIANTS], ids=str)
def test_losses_compile_to_one_graph(family: dict[str, str]) -> None:  # test_compile.py has the ResNet's as well
    _, ours = slim_pair(rpn_post_nms_top_n_train=100, **family)
    ours.train()
    draw_first(ours)
    arguments = static_arguments(ours)
    expected = ours.losses(*arguments)
    compiled = torch.compile(ours.losses, fullgraph=True, backend="eager")(*arguments)
    for name, loss in expected.items():
        torch.testing.assert_close(compiled[name], loss, rtol=1e-4, atol=1e-5)
    sum(compiled.values()).backward()
    assert ours.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.any()


@pytest.mark.parametrize("family", [{}, VARIANTS], ids=str)
def test_losses_have_no_data_dependent_op(family: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it runs on a GPU, with all padding."""
    _, ours = slim_pair(rpn_post_nms_top_n_train=100, **family)
    arguments = static_arguments(ours.train())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with NoDataDependence():
        ours.losses(*arguments)


def test_matcher_is_torchvisions() -> None:
    theirs = torchvision.models.detection._utils.Matcher
    quality = (torch.rand(7, 300) * 10).round() / 10  # many ties
    quality[3] = 0  # an instance that nothing overlaps
    for low_quality in (False, True):
        for high, low in ((0.7, 0.3), (0.5, 0.5)):
            expected = theirs(high, low, low_quality)(quality)
            assert torch.equal(Matcher(high, low, low_quality)(quality), expected)
            padded = torch.cat([quality, torch.full((2, 300), -1.0)])[None].repeat(2, 1, 1)
            assert torch.equal(Matcher(high, low, low_quality)(padded), expected.expand(2, -1))
    with pytest.raises(ValueError, match=r"low_threshold must be at most 0\.3, got 0\.7"):
        Matcher(0.3, 0.7)


@pytest.mark.parametrize(("positives", "negatives"), [(0, 0), (0, 50), (3, 50), (50, 3), (50, 50), (50, 0), (2, 3)])
def test_sampler_draws_what_torchvisions_draws(positives: int, negatives: int) -> None:
    """The numbers of both kinds are torchvision's, samples are eligible and distinct, and each has the same chance."""
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 7)
    labels = labels[torch.randperm(len(labels))][None]
    theirs = torchvision.models.detection._utils.BalancedPositiveNegativeSampler(20, 0.25)
    (expected_positive,), (expected_negative,) = theirs([labels[0]])
    sampler = BalancedPositiveNegativeSampler(20, 0.25)
    counts = torch.zeros(labels.shape[1])
    for _ in range(300):
        indices, positive, valid = (field[0] for field in sampler.sample(labels))
        assert positive.sum() == expected_positive.sum()
        assert (valid & ~positive).sum() == expected_negative.sum()
        drawn = indices[valid]
        assert len(drawn.unique()) == len(drawn)
        assert (labels[0, indices[positive]] == 1).all()
        assert (labels[0, indices[valid & ~positive]] == 0).all()
        counts[drawn] += 1
    for label, wanted in ((1, expected_positive.sum()), (0, expected_negative.sum())):
        share = counts[labels[0] == label] / 300
        if len(share):
            chance = float(wanted) / len(share)
            assert (share - chance).abs().max() <= 6 * (chance * (1 - chance) / 300) ** 0.5 + 1e-9


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_padding_repeats_what_counts(share: float, device: torch.device) -> None:
    """Norms in the heads must not see zeros where all rows are computed; each valid row counts once."""
    valid = torch.rand(3, 64, device=device) < share
    rows, counts = repeat_valid_rows(valid)
    number = int(valid.sum())
    assert rows.shape == counts.shape == (192,)
    assert sorted(rows[counts].tolist()) == valid.flatten().nonzero().squeeze(1).tolist()
    if number:
        times = torch.bincount(rows, minlength=192)
        assert not times[~valid.flatten()].any()
        often = times[valid.flatten()]
        assert often.min() == 192 // number
        assert often.max() <= 192 // number + 1


def test_the_fine_tuning_tutorial() -> None:
    """torchvision's tutorial with only the import changed: other predictors, some steps, evaluation."""
    from fastmask.models.detection.faster_rcnn import FastRCNNPredictor
    from fastmask.models.detection.mask_rcnn import MaskRCNNPredictor

    model = slim_model(fastmask)
    in_features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(in_features, 3)
    in_features_mask = model.roi_heads.mask_predictor.conv5_mask.in_channels
    model.roi_heads.mask_predictor = MaskRCNNPredictor(in_features_mask, 32, 3)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.005, momentum=0.9, weight_decay=0.0005)
    images, targets = draw_batch(torch.float32)
    model.train()
    history = []
    for _ in range(8):
        losses = sum(loss for loss in model(images, targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        history.append(losses.item())
    assert min(history[4:]) < history[0]
    model.eval()
    with torch.no_grad():
        predictions = model(images)
    assert [sorted(prediction) for prediction in predictions] == [["boxes", "labels", "masks", "scores"]] * 3
    for image, prediction in zip(images, predictions, strict=True):
        assert prediction["masks"].shape[1:] == (1, *image.shape[1:])
