"""One step: losses, gradients, a new set of weights; nothing in it waits for the device."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastmask.structures import Batch
from fastmask.training.config import Settings
from fastmask.training.loss_module import Average

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Step:
    """What changes the weights.

    Args:
        learner: batches -> losses; a :class:`Learner`, compiled or wrapped or not.
        model: whose weights they are.
        settings: of the optimizer.
        average: what follows the weights.
    """

    def __init__(self, learner: nn.Module, model: nn.Module, settings: Settings, average: Average | None) -> None:
        self.learner, self.settings, self.average = learner, settings, average
        self.parameters = [one for one in model.parameters() if one.requires_grad]
        if not self.parameters:
            raise ValueError("the model must have weights to train, got none")
        self.buffers = [one for one in model.buffers() if one.is_floating_point()]  # statistics of norms
        self.optimizer = optimizer_of(model, settings)
        self.names: list[str] = []

    def __call__(self, batch: Batch, rate: float, seed: int) -> Tensor:
        """Change the weights, and norms' statistics, by a batch on their device, unless a gradient is not finite.

        Args:
            rate: of learning.
            seed: of what is drawn in this step, whatever was drawn before it.

        Returns:
            The losses in the order of ``names``, then their sum, then the gradient's norm: [n + 2], on the device.
        """
        torch.manual_seed(seed)
        before = [one.clone() for one in self.buffers]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.learner(batch.pixels, batch.sizes, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        self.names = list(losses)
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.get_total_norm([one.grad for one in self.parameters if one.grad is not None])
        if self.settings.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip, norm)
        # as torch's GradScaler does it: the fused optimizers look at it on the device
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        with torch.no_grad():
            for one, old in zip(self.buffers, before, strict=True):
                one.copy_(torch.where(norm.isfinite(), one, old))
        if self.average is not None:
            self.average.update()
        return torch.stack([*losses.values(), total, norm]).detach()


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW over what is trained, with weight decay on everything but norms."""
    plain = [one for one in norm_parameters(model) if one.requires_grad]
    known = {id(one) for one in plain}
    decayed = [one for one in model.parameters() if one.requires_grad and id(one) not in known]
    groups = [{"params": decayed, "weight_decay": settings.decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
        for one in (*decayed, *plain):  # else a first step that is skipped leaves them as memory happens to be
            sgd.state[one]["momentum_buffer"] = torch.zeros_like(one, memory_format=torch.preserve_format)
        return sgd
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, NORMS):
            yield from module.parameters(recurse=False)
