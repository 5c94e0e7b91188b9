"""Memory format: users' modules see what they do in torchvision; weights are contiguous; ours run channels-last."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parameters_to_vector, parametrizations, prune, vector_to_parameters
from torch.utils._pytree import tree_leaves

import fastmask
from fastmask.models._layout import lay_out, takes_channels_last
from fastmask.models.prepare import prepare_for_inference

LAST = torch.channels_last
Change = Callable[[nn.Module, str], None]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
Results = tuple[dict[str, Tensor], dict[str, Tensor], tuple[Tensor, Tensor]]


def view(*values: Any) -> None:
    """Flat views of all tensors, as users' code takes them: a RuntimeError where these are channels-last."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            value.view(len(value), -1)


class Viewing(nn.Module):
    """A user's module around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any) -> Any:
        view(inputs)
        output = self.inner(*inputs)
        view(output)
        return output


class Convolution3d(nn.Module):
    """A convolution over a third axis of one plane."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        sides = (1, *inner.kernel_size), (1, *inner.stride), (0, *inner.padding)
        self.conv = nn.Conv3d(inner.in_channels, inner.out_channels, *sides, bias=False).to(inner.weight)
        with torch.no_grad():
            self.conv.weight.copy_(inner.weight[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.view(*x.shape[:2], 1, *x.shape[2:])).squeeze(2)


def wrap(model: nn.Module, name: str) -> None:
    model.set_submodule(name, Viewing(model.get_submodule(name)))


def hook(model: nn.Module, name: str) -> None:
    model.get_submodule(name).register_forward_hook(lambda _, inputs, output: view(inputs, output))


def set_forward(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    layer.forward = Viewing(copy.deepcopy(layer)).forward


def derive(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    kind: Any = type(layer)

    class Derived(kind):
        def forward(self, *inputs: Any) -> Any:
            view(inputs)
            return super().forward(*inputs)

    layer.__class__ = Derived


def replace_by_3d(model: nn.Module, name: str) -> None:
    model.set_submodule(name, Convolution3d(model.get_submodule(name)))


USERS: list[tuple[Change, str]] = [
    (wrap, "backbone"),
    (wrap, "backbone.body.layer2.0"),
    (wrap, "backbone.fpn.extra_blocks"),
    (wrap, "rpn.head"),
    (wrap, "roi_heads.box_head"),
    (wrap, "roi_heads.mask_head"),
    (wrap, "roi_heads.mask_predictor"),
    (wrap, "roi_heads.mask_predictor.relu"),
    (hook, "backbone.body.layer4"),
    (hook, "rpn.head"),
    (derive, "backbone.fpn"),
    (derive, "roi_heads.box_head"),
    (set_forward, "backbone.body.layer3"),
    (replace_by_3d, "backbone.body.layer3.0.conv1"),
]


@functools.cache
def unchanged() -> tuple[nn.Module, Batch, Results]:
    """A model in float64, a batch, and its results there."""
    small = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    model = train_pair(min_size=64, max_size=96, box_score_thresh=0.0, **small)[1]
    images, targets = (values[:1] for values in draw_batch())
    return model, (images, targets), run_both(copy.deepcopy(model), images, targets)


def run_both(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Results:
    """Losses, through which gradients flow, and detections with the model's own arguments."""
    losses = model.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    with torch.no_grad():
        batch, _ = model.eval().transform(images)
        arguments = batch.tensors, torch.tensor(batch.image_sizes)
        return losses, model.infer(*arguments)._asdict(), arguments


@pytest.mark.parametrize(("change", "name"), USERS, ids=lambda value: getattr(value, "__name__", value))
def test_users_modules_see_contiguous_tensors(change: Change, name: str) -> None:
    """In training, in inference, and in prepared models, whose results are those of the model before the change."""
    model, batch, (losses, detections, (pixels, sizes)) = unchanged()
    assert detections["count"].all()
    model = copy.deepcopy(model)
    change(model, name)
    actual_losses, actual, _ = run_both(model, *batch)
    torch.testing.assert_close(actual_losses, losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(actual, detections, rtol=1e-9, atol=1e-9)
    for form in ("off", "kernel"):
        prepared = prepare_for_inference(model, torch.float64, form)
        with torch.no_grad():
            actual = prepared.infer(pixels.contiguous(memory_format=LAST), sizes)._asdict()
        torch.testing.assert_close(actual, detections, rtol=1e-6, atol=1e-6)


def test_torchvision_gives_the_same_views() -> None:
    """The changes above are what works there."""
    theirs = slim_pair()[0]
    for change, name in USERS:
        changed = copy.deepcopy(theirs)
        change(changed, name)
        changed([draw_image(64, 64)[0]])


def test_weights_are_contiguous_and_our_activations_are_not() -> None:
    model = slim_model(fastmask).eval()
    assert all(weight.is_contiguous() for weight in model.state_dict().values())
    pixels = torch.rand(2, 3, 64, 96)
    prepared = [prepare_for_inference(model, torch.float32, form) for form in ("off", "kernel")]
    for ready in prepared:
        assert all(w.is_contiguous(memory_format=LAST) for w in ready.state_dict().values() if w.ndim == 4)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in ready.modules())
    for maps in (each.extract_features(pixels).maps for each in (model, *prepared)):
        assert all(feature.is_contiguous(memory_format=LAST) for feature in maps.values())
        assert not any(feature.is_contiguous() for feature in maps.values())
    prune.l1_unstructured(model.backbone.body.conv1, "weight", 0.5)  # a hook of PyTorch's, and a class of its own
    parametrizations.weight_norm(model.backbone.body.layer1[0].conv1)
    assert takes_channels_last(model.backbone)
    wrap(model, "rpn.head")
    assert all(feature.is_contiguous() for feature in model.extract_features(pixels).maps.values())


def test_the_layout_changes_no_results() -> None:
    """Neither bare nor prepared, where the weights come as they were laid out before, and state dicts interchange."""
    models = [slim_pair()[1] for _ in range(2)]
    lay_out(models[1])
    assert not models[1].backbone.body.conv1.weight.is_contiguous()
    states = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    for model, state in zip(models, reversed(states), strict=True):
        before = {key: value.stride() for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        assert {key: value.stride() for key, value in model.state_dict().items()} == before
    models[0].load_state_dict(models[1].state_dict())
    images = [draw_image(100, 140)[0]]
    with torch.no_grad():
        (one,), (other,) = (model(images) for model in models)
        assert len(one["boxes"])
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        pixels, sizes = torch.rand(1, 3, 64, 96), torch.tensor([[64, 96]])
        prepared = [prepare_for_inference(model, torch.float32).infer(pixels, sizes) for model in models]
    torch.testing.assert_close(prepared[0]._asdict(), prepared[1]._asdict(), rtol=0, atol=0)


def small_model() -> nn.Module:
    return slim_model(fastmask, rpn_post_nms_top_n_train=50, rpn_batch_size_per_image=32, box_batch_size_per_image=16)


def test_flat_views_of_weights(tmp_path: Path) -> None:
    """``parameters_to_vector``, LBFGS, safetensors."""
    model, other = small_model(), small_model()
    vector_to_parameters(parameters_to_vector(model.parameters()), other.parameters())
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    batch = [values[:1] for values in draw_batch(torch.float32)]
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        torch.manual_seed(0)  # of the samples
        loss = torch.stack(list(model(*batch).values())).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).detach() > closure().detach()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@pytest.mark.skipif(not dist.is_available(), reason="a build of PyTorch without torch.distributed")
def test_sharded_models() -> None:
    """FSDP2 on one rank: the loss of the first step and the weights after it are those of the same model unsharded."""
    models = [small_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in (models[1].backbone.body.layer1, models[1].backbone, models[1].roi_heads.box_head, models[1]):
            fully_shard(part, mesh=mesh)
        assert takes_channels_last(models[1].backbone)
        batch = [values[:1] for values in draw_batch(torch.float32)]
        for model in models:
            torch.manual_seed(0)  # of the samples
            loss = torch.stack(list(model(*batch).values())).sum()
            loss.backward()
            torch.optim.SGD(model.parameters(), lr=0.01).step()
        wanted = dict(models[0].named_parameters())
        for name, weight in models[1].named_parameters():
            torch.testing.assert_close(weight.full_tensor(), wanted[name], rtol=1e-4, atol=1e-5)
    finally:
        dist.destroy_process_group()
