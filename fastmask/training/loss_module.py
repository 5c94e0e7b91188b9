"""A model with its losses and the normalization of its images, as one module."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.losses import Losses
from fastmask.structures import Targets

Normalizer = Callable[[Tensor], Tensor]


class LossModule(nn.Module):
    """Padded uint8 images -> losses, without a host sync.

    Args:
        model: the model, in training mode.
        normalizer: see :meth:`GeneralizedRCNN.losses`; None: each rank's losses are means of its own samples.
        bf16: compute in bfloat16 where autocast allows it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: GeneralizedRCNN, normalizer: Normalizer | None = None, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.normalizer, self.bf16 = model, normalizer, bf16
        like = next(model.parameters())
        for name, values in (("mean", model.transform.image_mean), ("std", model.transform.image_std)):
            column = torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
            self.register_buffer(name, column, persistent=False)

    def forward(self, pixels: Tensor, sizes: Tensor, targets: Targets) -> Losses:
        """Return the losses by name, each a scalar; the arguments are those of :class:`fastmask.structures.Batch`."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            options = {} if self.normalizer is None else {"over": self.normalizer}
            return self.model.losses(self.normalized(pixels, sizes), sizes, targets, **options)

    def normalized(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> floating, zero where there is no image."""
        rows, columns = (torch.arange(pixels.shape[axis], device=pixels.device) for axis in (2, 3))
        inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # [B, H, W]
        return torch.where(inside[:, None], (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std, 0)


def mean_over_ranks(world_size: int) -> Normalizer:
    """Return a normalizer with which the mean of all ranks' gradients is the gradient of all their samples' mean."""

    def normalizer(number: Tensor) -> Tensor:
        total = number.to(torch.float32)  # exact for as many samples as there can be
        dist.all_reduce(total)
        return total / world_size

    return normalizer
