"""Layers that users change (pruned, normalized, hooked, replaced): as in torchvision, in steps of training and in eval.

Weights may be read past a layer's call only where the layer is plain: see fastmask/models/_plain.py.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.exact import assert_exact
from helpers.images import draw_image
from helpers.slim import slim_pair
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import fastmask
from fastmask.models._plain import is_plain
from fastmask.models.prepare import prepare_for_inference


def double_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return 2 * output


def hook(layer: nn.Module) -> None:
    layer.register_forward_hook(double_output)


def hook_before(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 2,))


def hook_gradients(layer: nn.Module) -> None:
    layer.register_full_backward_hook(lambda _, inputs, __: tuple(2 * gradient for gradient in inputs))


def set_forward(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def prune_half(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.5)


def prune_for_good(layer: nn.Module) -> None:
    prune_half(layer)
    prune.remove(layer, "weight")


def divide_by_spectral_norm(layer: nn.Module) -> None:
    """The older one, after some steps of training: its first guess of the norm can be near 0."""
    spectral_norm(layer, n_power_iterations=10)
    mode = layer.training
    for before in layer.train()._forward_pre_hooks.values():
        before(layer, ())
    layer.train(mode)


CHANGES: list[Callable[[nn.Module], Any]] = [
    hook,
    hook_before,
    set_forward,
    prune_half,
    prune_for_good,
    weight_norm,
    divide_by_spectral_norm,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
]
LAYERS = [
    "backbone.body.conv1",
    "backbone.body.layer2.0.conv2",
    "backbone.body.layer2.0.downsample",
    "backbone.fpn.inner_blocks.0.0",
    "rpn.head.cls_logits",
    "roi_heads.box_head.fc6",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor",
    "roi_heads.mask_predictor.conv5_mask",
    "roi_heads.mask_predictor.mask_fcn_logits",
]


def name_of(change: Callable[..., Any]) -> str:
    return "old weight_norm" if change is weight_norm else change.__name__


def change_layer(model: nn.Module, layer: str, change: Callable[[nn.Module], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older weight_norm
        change(model.get_submodule(layer))
    model.double()


def change_both(change: Callable[[nn.Module], Any], layer: str, pair: tuple[nn.Module, nn.Module]) -> None:
    """Change the same layer of both models in the same way; random numbers and new weights are the same."""
    theirs, ours = pair
    for model in pair:
        torch.manual_seed(0)
        change_layer(model, layer, change)
    ours.load_state_dict(theirs.state_dict())


def fits(change: Callable[[nn.Module], Any], layer: str) -> bool:
    """Whether a layer has weights, or the change needs none."""
    return change in (hook, hook_before, set_forward) or not layer.endswith(("downsample", "mask_predictor"))


CASES = [
    pytest.param(layer, change, id=f"{layer}, {name_of(change)}")
    for layer in LAYERS
    for change in CHANGES
    if fits(change, layer)
]


@torch.no_grad()
def check_predictions(theirs: nn.Module, ours: nn.Module, images: list[Tensor]) -> None:
    for actual, expected in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert len(expected["boxes"])
        assert_exact(actual, expected)
        torch.testing.assert_close(actual["masks"], expected["masks"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("layer", "change"), CASES)
def test_changed_layers(layer: str, change: Callable[[nn.Module], Any]) -> None:
    pair = slim_pair(box_score_thresh=0.0)
    change_both(change, layer, pair)
    check_predictions(*pair, [draw_image(100, 140)[0].double()])


REPLACEMENTS: dict[str, Callable[[], nn.Module]] = {
    "sequence": lambda: nn.Sequential(nn.Conv2d(32, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)),
    "3x3 convolution": lambda: nn.Conv2d(32, 5, 3, padding=1),
    "3x3 convolution without padding": lambda: nn.Conv2d(32, 5, 3),
    "1x1 convolution with padding": lambda: nn.Conv2d(32, 5, 1, padding=1),
    "1x1 convolution with a stride": lambda: nn.Conv2d(32, 5, 1, 2),
    "1x1 convolution without bias": lambda: nn.Conv2d(32, 5, 1, bias=False),
}


def train_three_steps(pair: tuple[nn.Module, nn.Module]) -> None:
    """Each step's losses are the same, and so are the predictions afterwards."""
    images, targets = (values[:1] for values in draw_batch())
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-4) for model in pair]
    for _ in range(3):
        losses = [model(images, targets) for model in pair]
        for name, expected in losses[0].items():
            torch.testing.assert_close(losses[1][name], expected, rtol=1e-7, atol=1e-7)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            torch.stack(list(loss.values())).sum().backward()
            optimizer.step()
    for model in pair:
        model.eval()
    with torch.no_grad():
        actual, expected = (model(images) for model in pair[::-1])
    for mine, other in zip(actual, expected, strict=True):
        assert len(other["boxes"])
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


TRAINED = [hook, hook_gradients, prune_half, weight_norm, divide_by_spectral_norm, parametrizations.weight_norm]


@pytest.mark.parametrize("change", TRAINED, ids=name_of)
def test_training_with_changed_mask_logits(change: Callable[[nn.Module], Any]) -> None:
    pair = train_pair()
    change_both(change, "roi_heads.mask_predictor.mask_fcn_logits", pair)
    train_three_steps(pair)


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_training_with_other_mask_logits(name: str) -> None:
    pair = train_pair()
    for model in pair:
        model.roi_heads.mask_predictor.mask_fcn_logits = REPLACEMENTS[name]().double()
    pair[1].load_state_dict(pair[0].state_dict())
    train_three_steps(pair)


@pytest.mark.parametrize("layer", ["backbone.body.conv1", "roi_heads.box_head.fc6"])
@pytest.mark.parametrize("change", [weight_norm, parametrizations.spectral_norm], ids=name_of)
def test_training_with_other_changed_layers(layer: str, change: Callable[[nn.Module], Any]) -> None:
    pair = train_pair()
    change_both(change, layer, pair)
    train_three_steps(pair)


@pytest.mark.parametrize("form", ["off", "kernel"])
@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_prepared_models_have_the_changes(change: Callable[[nn.Module], Any], form: Any) -> None:
    """All layers at once, after a forward that leaves weights with gradients behind, which deepcopy refuses."""
    ours = slim_pair(box_score_thresh=0.0)[1]
    for layer in LAYERS:
        if fits(change, layer):
            change_layer(ours, layer, change)
    images = [draw_image(100, 140)[0].double()]
    ours(images)
    with torch.no_grad():
        batch, _ = ours.transform(images)
        sizes = torch.tensor(batch.image_sizes)
        expected = ours.infer(batch.tensors, sizes)
        actual = prepare_for_inference(ours, torch.float64, form).infer(batch.tensors, sizes)
    assert int(expected.count) > 0
    torch.testing.assert_close(actual._asdict(), expected._asdict(), rtol=1e-6, atol=1e-6)


def test_a_hook_of_all_modules_is_called() -> None:
    """``register_module_forward_hook`` sees every layer, as in torchvision."""
    image = draw_image(100, 140)[0]
    called = []
    for model in slim_pair():
        seen: set[nn.Module] = set()
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_, seen=seen: seen.add(module))
        with torch.no_grad():
            model([image])
        handle.remove()
        weights = {name.rpartition(".")[0] for name in model.state_dict()}
        called.append({name for name, module in model.named_modules() if module in seen and name in weights})
    assert len(called[0]) > 40
    assert called[1] == called[0]


def test_a_plain_layer() -> None:
    conv = nn.Conv2d(3, 4, 1)
    assert is_plain(conv, nn.Conv2d)
    assert is_plain(conv, nn.Linear, nn.Conv2d)
    assert not is_plain(conv, nn.Linear)
    prune_for_good(conv)
    assert is_plain(conv, nn.Conv2d)
    assert not is_plain(fastmask.ops.FrozenBatchNorm2d(3), nn.BatchNorm2d)
