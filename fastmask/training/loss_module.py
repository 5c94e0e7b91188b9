"""What is trained: a model together with what makes its inputs of pixels; and the average of its weights."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.losses import Losses
from fastmask.preprocess import normalize_padded
from fastmask.structures import Targets


class Learner(nn.Module):
    """Padded pixels as they are read -> losses; nothing in it waits for the device.

    Args:
        model: in training mode.
        over: see :meth:`GeneralizedRCNN.losses`; None: each rank's losses are means of its own samples.
        half: bfloat16 where autocast allows it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: GeneralizedRCNN, over: Callable[[Tensor], Tensor] | None = None, half: bool = False
    ) -> None:
        super().__init__()
        self.model, self.over, self.autocast = model, over, half
        like = next(model.parameters())
        for name, values in (("mean", model.transform.image_mean), ("std", model.transform.image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=like.dtype, device=like.device), persistent=False)

    def forward(self, pixels: Tensor, sizes: Tensor, targets: Targets) -> Losses:
        """See :class:`fastmask.structures.Batch`."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.autocast):
            over = {} if self.over is None else {"over": self.over}
            return self.model.losses(normalize_padded(pixels, sizes, self.mean, self.std), sizes, targets, **over)


class Average:
    """The exponential moving average of a model's weights and statistics, in a copy of it.

    Args:
        model: what is averaged.
        decay: what is left of the average at each step; less in the first steps, so that they do not count for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0
        self.pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        floating = [pair for pair in self.pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floating], [now for _, now in floating], 1 - decay)
        for own, now in self.pairs:
            if not own.is_floating_point():
                own.copy_(now)
