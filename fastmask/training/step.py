"""One training step: losses, gradients, new weights, without a host sync."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.structures import Batch, Targets
from fastmask.training.config import TrainConfig
from fastmask.training.ema import ModelEma

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class TrainStep:
    """A step of the optimizer, for batches one after the other.

    Args:
        loss_module: a :class:`LossModule`, as it is, compiled or wrapped.
        model: the model whose weights are trained.
        config: the optimizer's settings.
        ema: updated after each step.

    Raises:
        ValueError: no weight of the model requires a gradient.
    """

    def __init__(self, loss_module: nn.Module, model: nn.Module, config: TrainConfig, ema: ModelEma | None) -> None:
        self.loss_module, self.config, self.ema = loss_module, config, ema
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model must have weights to train, got none")
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # statistics of norms
        self.optimizer = make_optimizer(model, config)
        self.names: list[str] = []

    def __call__(self, batch: Batch, lr: float, seed: int) -> Tensor:
        """Update the weights and the norms' statistics, unless a gradient is not finite.

        Args:
            batch: a batch on the model's device.
            lr: the learning rate.
            seed: of what is drawn in this step, whatever was drawn before it.

        Returns:
            The losses in the order of ``names``, then their sum, then the gradient's norm: [n + 2], on the device.
        """
        torch.manual_seed(seed)
        if self.config.compile:
            mark_dynamic(batch.targets)
        before = [buffer.clone() for buffer in self.buffers]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self.loss_module(batch.pixels, batch.sizes, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        self.names = list(losses)
        self.optimizer.zero_grad()
        total.backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        # as torch's GradScaler does it: the fused optimizers read it on the device
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        with torch.no_grad():
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(torch.where(norm.isfinite(), buffer, old))
        if self.ema is not None:
            self.ema.update()
        return torch.stack([*losses.values(), total, norm]).detach()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the weights that require a gradient, with weight decay on all but the norms'."""
    plain = [parameter for parameter in norm_parameters(model) if parameter.requires_grad]
    ids = {id(parameter) for parameter in plain}
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in ids]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
        for parameter in (*decayed, *plain):  # else a first step that is skipped leaves uninitialized memory in it
            momentum = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            sgd.state[parameter]["momentum_buffer"] = momentum
        return sgd
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state, in the memory format that the weights have now: fused optimizers read both in memory order."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, NORMS):
            yield from module.parameters(recurse=False)


def mark_dynamic(targets: Targets) -> None:
    """Let torch.compile know that numbers of instances vary: the first batch's program then serves all."""
    torch._dynamo.maybe_mark_dynamic(targets.boxes, 1)
    torch._dynamo.maybe_mark_dynamic(targets.labels, 1)
    if targets.masks is not None:
        torch._dynamo.maybe_mark_dynamic(targets.masks, 0)
    if targets.has_mask is not None:
        torch._dynamo.maybe_mark_dynamic(targets.has_mask, 1)
    if targets.keypoints is not None:
        torch._dynamo.maybe_mark_dynamic(targets.keypoints, 1)


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch's tensors to a device; the indices, which only the host reads, stay."""
    moved = (None if tensor is None else tensor.to(device, non_blocking=True) for tensor in batch.targets)
    targets = Targets._make(moved)
    pixels, sizes = (tensor.to(device, non_blocking=True) for tensor in (batch.pixels, batch.sizes))
    return batch._replace(pixels=pixels, sizes=sizes, targets=targets)
