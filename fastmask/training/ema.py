"""The exponential moving average (EMA) of a model's weights."""

import copy

import torch
from torch import nn


class ModelEma:
    """The exponential moving average of a model's weights and statistics, in a copy of the model.

    Args:
        model: the model that is averaged.
        decay: the share of the average that each step keeps. It is lower in the first steps, so that early
            weights fade quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0
        self.pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Average the model's present weights in, after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        floating = [pair for pair in self.pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floating], [value for _, value in floating], 1 - decay)
        for average, value in self.pairs:
            if not average.is_floating_point():
                average.copy_(value)
