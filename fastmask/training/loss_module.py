"""A model with its losses and the normalization of its images, as one module."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmask.models.detection._overrides import check_static
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.losses import Losses
from fastmask.preprocess import normalize_padded
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
        check_static(model, training=True, transform=True)
        self.model, self.normalizer, self.bf16 = model, normalizer, bf16
        like = next(model.parameters())
        for name, values in (("mean", model.transform.image_mean), ("std", model.transform.image_std)):
            self.register_buffer(name, torch.as_tensor(values, dtype=like.dtype, device=like.device), persistent=False)

    def forward(self, pixels: Tensor, sizes: Tensor, targets: Targets) -> Losses:
        """Return the losses by name, each a scalar; the arguments are those of :class:`fastmask.structures.Batch`."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            options = {} if self.normalizer is None else {"normalizer": self.normalizer}
            return self.model.losses(normalize_padded(pixels, sizes, self.mean, self.std), sizes, targets, **options)


def mean_over_ranks(world_size: int) -> Normalizer:
    """Return a normalizer with which the mean of all ranks' gradients is the gradient of all their samples' mean."""

    def normalizer(number: Tensor) -> Tensor:
        total = number.to(torch.float32)  # exact for as many samples as there can be
        dist.all_reduce(total)
        return total / world_size

    return normalizer
