"""The step: normalization, optimizer, EMA, gradients that are not finite; static, without a graph break."""

import copy

import pytest
import torch
from helpers.slim import slim_model
from helpers.static import NoDataDependence
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import fastmask
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.demo import synthetic_dataset
from fastmask.preprocess import normalize_padded
from fastmask.structures import Batch, pad_targets
from fastmask.training import LossModule, ModelEma, TrainConfig, TrainStep
from fastmask.training.step import load_optimizer, make_optimizer

SMALL = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32, "rpn_batch_size_per_image": 64}


def drawn_batch(seed: int, number: int = 2) -> Batch:
    augmentation = Augmentation(min_size=(64, 96), max_size=150, flip=0.5)
    (batch,) = training_loader(synthetic_dataset(number, seed, (96, 128)), number, augmentation, seed=seed)
    return batch


def make_model(norm: str = "FrozenBatchNorm2d", **options: object) -> nn.Module:
    return slim_model(fastmask, norm, **SMALL | options).train()


def test_pixels_are_normalized_as_the_model_does(seed: int) -> None:
    """Padding is zero, as where the transform pads."""
    batch = drawn_batch(seed, 4)
    model = make_model()
    module = LossModule(model)
    found = normalize_padded(batch.pixels, batch.sizes, module.mean, module.std)
    for planes, pixels, (height, width) in zip(found, batch.pixels, batch.sizes.tolist(), strict=True):
        expected = model.transform.normalize(pixels[:, :height, :width].float() / 255)
        torch.testing.assert_close(planes[:, :height, :width], expected)
        assert not planes[:, height:].any()
        assert not planes[:, :, width:].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_are_those_of_the_unfused_optimizer(optimizer: str, seed: int) -> None:
    """Losses, gradients and torch's own loop over parameters, one by one; norms do not decay."""
    config = TrainConfig(1, 2, optimizer=optimizer, weight_decay=0.3, max_grad_norm=0.5)
    ours, theirs = make_model("BatchNorm2d").double(), make_model("BatchNorm2d").double()
    theirs.load_state_dict(ours.state_dict())
    step = TrainStep(LossModule(ours), ours, config, None)
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    norms = {id(p) for m in theirs.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    groups = [
        {"params": [p for p in theirs.parameters() if (id(p) in norms) == plain], "weight_decay": 0.0 if plain else 0.3}
        for plain in (False, True)
    ]
    other = kinds[optimizer](groups, lr=0.01, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    for number in range(3):
        batch = drawn_batch(seed + number)
        values = step(batch, 0.01, seed + number)
        torch.manual_seed(seed + number)
        losses = LossModule(theirs)(batch.pixels, batch.sizes, batch.targets)
        other.zero_grad()
        sum(losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        other.step()
        assert step.names == list(losses)
        expected = torch.stack([*losses.values(), sum(losses.values()), norm])
        torch.testing.assert_close(values, expected.detach(), rtol=1e-6, atol=1e-6)
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_of_weights_in_another_memory_format(optimizer: str) -> None:
    """As of a run that began before weights were contiguous: its next step is the same, momentum included."""
    config = TrainConfig(1, 2, optimizer=optimizer, weight_decay=0.3)
    formats = (torch.channels_last, torch.contiguous_format)
    for before, after in (formats, formats[::-1]):
        saved, resumed = (nn.Conv2d(3, 4, 3).to(memory_format=layout) for layout in (before, after))
        one, other = (make_optimizer(model, config) for model in (saved, resumed))
        for number, both in enumerate(([saved], [saved, resumed])):
            if number:
                resumed.load_state_dict(saved.state_dict())
                load_optimizer(other, copy.deepcopy(one.state_dict()))
            x = torch.randn(2, 3, 5, 5)
            for model, made in zip(both, (one, other), strict=False):
                made.param_groups[0]["lr"] = 0.1
                made.zero_grad()
                model(x).square().sum().backward()
                made.step()
        torch.testing.assert_close(resumed.weight, saved.weight, rtol=1e-5, atol=1e-6)
        assert resumed.weight.is_contiguous(memory_format=after)


class Poisoned(nn.Module):
    """A loss module one of whose losses is NaN."""

    def __init__(self, loss_module: LossModule) -> None:
        super().__init__()
        self.loss_module = loss_module

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        losses = self.loss_module(*batch)
        return losses | {"loss_mask": losses["loss_mask"] * float("nan")}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing(optimizer: str, seed: int) -> None:
    model = make_model()
    batch = drawn_batch(seed)
    loss_module = LossModule(model)
    step = TrainStep(loss_module, model, TrainConfig(1, 2, optimizer=optimizer, max_grad_norm=1.0), None)
    step(batch, 0.01, seed)
    before = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(step.optimizer.state_dict())
    step.loss_module = Poisoned(loss_module)
    values = step(batch, 0.01, seed)
    assert values.isnan().any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for number, buffers in step.optimizer.state_dict()["state"].items():
        for name, value in buffers.items():
            assert torch.equal(value, state["state"][number][name])
    step.loss_module = loss_module
    assert step(batch, 0.01, seed).isfinite().all()
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ema() -> None:
    """Against its formula, in float64: a lower decay in the first steps; statistics too, and counts as they are."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    ema = ModelEma(model, 0.8)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(12):
        model(torch.randn(5, 2).double()).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        ema.update()
        decay = min(0.8, (1 + number) / (10 + number))
        for name, value in model.state_dict().items():
            kept = decay * expected[name] + (1 - decay) * value
            expected[name] = kept if value.is_floating_point() else value.clone()
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_numbers_of_instances_are_compiled_once() -> None:
    """Nothing breaks the graph, and the first batch's serves others, where boxes, masks or both are as many or not."""
    model, counter = make_model(), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(LossModule(model), backend=counter, fullgraph=True)
    step = TrainStep(compiled, model, TrainConfig(1, 2, compile=True), None)  # type: ignore[arg-type]
    pixels, sizes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]] * 2)
    box, mask = torch.tensor([8.0, 8.0, 40.0, 40.0]), torch.ones(64, 64, dtype=torch.uint8)
    for numbers in ((3, 2), (4, 1), (4, 3), (2, 0)):
        instances = [
            {"boxes": box.repeat(n, 1), "labels": torch.ones(n, dtype=torch.int64), "masks": mask.repeat(n, 1, 1)}
            for n in numbers
        ]
        batch = Batch(pixels, sizes, pad_targets(instances, pixels, True), torch.arange(2), ())
        assert step(batch, 0.0, 1).isfinite().all()
    assert counter.frame_count == 1


def test_the_whole_step_has_no_data_dependent_op(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, backward, clipping, optimizer and EMA, as on a GPU: with nothing cut off."""
    model = make_model()
    ema = ModelEma(model, 0.9)
    step = TrainStep(LossModule(model), model, TrainConfig(1, 2, optimizer="adamw", max_grad_norm=1.0), ema)
    batch = drawn_batch(seed)
    step(batch, 0.01, seed)  # which makes the optimizer's state
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with NoDataDependence():
        values = step(batch, 0.01, seed)
    assert values.isfinite().all()


def test_nothing_to_train() -> None:
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="the model must have weights to train, got none"):
        TrainStep(LossModule(model), model, TrainConfig(1, 2), None)
