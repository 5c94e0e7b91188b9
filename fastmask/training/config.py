"""The settings of a training run, and what follows from them: the learning rate of each step, the augmentation."""

import dataclasses
import math
from typing import Any

from fastmask.checks import check_at_least, check_choice
from fastmask.data.augment import Augmentation, Transform
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.variants import CHOICES as VARIANTS

BATCH_SIZE = 16  # images that the paper's learning rate is for
PEAK_LR = {"sgd": 0.02, "adamw": 2e-4}  # for that many; Mask R-CNN, section 3.1, and what AdamW usually takes
CHOICES = {"optimizer": tuple(PEAK_LR), "schedule": ("step", "cosine"), "on_nonfinite": ("stop", "skip")}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a run but the model and the data; the options of ``fastmask train`` have the same names.

    Args:
        epochs: passes over the training images.
        batch_size: images of a step, on each rank.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        lr: learning rate; None: 0.02 (sgd) or 0.0002 (adamw) for 16 images, in proportion to all ranks' images (sgd) or
            to their square root (adamw).
        schedule: "step": a tenth from two thirds of the steps on, a hundredth from eight ninths on, as the paper;
            "cosine": down to zero.
        warmup: steps in which the learning rate grows linearly from a thousandth; at most a tenth of all.
        weight_decay: of all weights but the norms'.
        max_grad_norm: gradients are clipped to this norm; 0: they are not.
        ema_decay: decay of the weights' exponential moving average, which is then what is evaluated and kept as the
            best weights; 0: no average.
        bf16: compute in bfloat16 where autocast allows it.
        compile: torch.compile the losses.
        on_nonfinite: "stop" or "skip", where a gradient is not finite.
        seed: of everything random, from 0.
        workers: processes that read images, on each rank.
        save_every: steps after which a checkpoint is also saved within an epoch; 0: after epochs only.
        min_size: lengths of the shorter side, in pixels, of which one is drawn for each image; None: the model's.
        max_size: limit of the longer side, in pixels; None: the model's.
        size: (height, width), multiples of 32, that all batches are padded to; None: each batch as it needs.
        flip: probability that an image is mirrored.
        zoom: (least, most) of large-scale jitter, whose images are cut to ``size``; see
            :class:`fastmask.data.augment.Augmentation`.
        color: how much colors vary, up to 1.
        paste: probability that objects of another image are pasted.
        keep_empty: also train on images without objects.
        crowds_as_objects: take each crowd for one object, as some tools write it; else crowds are left out.
        min_keypoints: annotated keypoints that an image must have to train a keypoint branch, see
            :func:`fastmask.data.loading.training_loader`.
        box_pooling, mask_head, mask_classes, rpn_loss, box_loss, mask_loss: the builder's arguments of a model that is
            built, see :class:`fastmask.models.detection.MaskRCNN`; None: those of the weights, or else the defaults.
        sampling_ratio: likewise; one number, or one for each feature map.

    Raises:
        ValueError: a setting is out of its range.
    """

    epochs: int
    batch_size: int = 2
    optimizer: str = "sgd"
    lr: float | None = None
    schedule: str = "step"
    warmup: int = 500
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.0
    ema_decay: float = 0.0
    bf16: bool = False
    compile: bool = False
    on_nonfinite: str = "stop"
    seed: int = 0
    workers: int = 2
    save_every: int = 0
    min_size: tuple[int, ...] | None = None
    max_size: int | None = None
    size: tuple[int, int] | None = None
    flip: float = 0.5
    zoom: tuple[float, float] | None = None
    color: float = 0.0
    paste: float = 0.0
    keep_empty: bool = False
    crowds_as_objects: bool = False
    min_keypoints: int = 1
    box_pooling: str | None = None
    mask_head: str | None = None
    mask_classes: str | None = None
    rpn_loss: str | None = None
    box_loss: str | None = None
    mask_loss: str | None = None
    sampling_ratio: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        least = dict.fromkeys(("epochs", "batch_size"), 1)
        least |= dict.fromkeys(("warmup", "seed", "workers", "save_every", "min_keypoints"), 0)
        for name, number in least.items():
            check_at_least(name, getattr(self, name), number)
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, choices in VARIANTS.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        if isinstance(self.sampling_ratio, int):
            object.__setattr__(self, "sampling_ratio", (self.sampling_ratio,))
        check_at_least("sampling_ratio", min(self.sampling_ratio or (0,)), 0)
        # lists, as a command line has them, are equal to tuples then
        for name in ("min_size", "size", "zoom", "sampling_ratio"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.zoom and self.size is None:
            raise ValueError("size must be given with zoom, whose images are cut to it")

    def variants(self) -> dict[str, Any]:
        """The builder's arguments of a model that is built, as far as they are given."""
        values = {name: getattr(self, name) for name in (*VARIANTS, "sampling_ratio")}
        if self.sampling_ratio is not None and len(self.sampling_ratio) == 1:
            (values["sampling_ratio"],) = self.sampling_ratio
        return {name: value for name, value in values.items() if value is not None}

    def peak_lr(self, world_size: int) -> float:
        """The learning rate after the warm-up, with this many ranks."""
        if self.lr is not None:
            return self.lr
        share = self.batch_size * world_size / BATCH_SIZE
        return PEAK_LR[self.optimizer] * (share if self.optimizer == "sgd" else math.sqrt(share))

    def lr_at(self, step: int, steps: int, world_size: int) -> float:
        """The learning rate of a step, of ``steps`` in all."""
        warmup = min(self.warmup, steps // 10)
        if step < warmup:
            share = step / warmup
            factor = 0.001 * (1 - share) + share
        elif self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        else:
            factor = 0.1 ** ((3 * step >= 2 * steps) + (9 * step >= 8 * steps))
        return self.peak_lr(world_size) * factor

    def augmentation(self, transform: GeneralizedRCNNTransform, own: Transform | None = None) -> Augmentation:
        """How images are varied, with the sizes of a model's transform where none are set, and a user's function.

        Raises:
            ValueError: a setting is out of its range.
        """
        longest = self.max_size or int(transform.max_size)
        if self.min_size and max(self.min_size) > longest:
            raise ValueError(f"min_size must be at most max_size, {longest}, got {max(self.min_size)}")
        canvas = self.size if self.zoom and self.size else (1024, 1024)
        sizes = self.min_size or tuple(transform.min_size)
        rule = transform._enlarge_only
        return Augmentation(sizes, longest, self.flip, self.zoom or None, canvas, self.color, self.paste, rule, own)
