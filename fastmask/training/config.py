"""What a training run is told, and what it makes of that where it is told nothing."""

import dataclasses
import math
from typing import Any

BATCH = 16  # images that the paper's learning rate is for
RATES = {"sgd": 0.02, "adamw": 2e-4}  # for that many; Mask R-CNN, section 3.1, and what AdamW usually takes


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything but the model and the images that a run depends on.

    Args:
        epochs: times that each image is seen.
        batch: images of a step, on each rank.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        rate: learning rate; None: 0.02 (sgd) or 0.0002 (adamw) for 16 images, in proportion to all ranks' images
            (sgd) or to their square root (adamw).
        schedule: "step": a tenth from two thirds of the steps on, a hundredth from eight ninths on, as the paper;
            "cosine": down to zero.
        warmup: steps in which the rate grows linearly from a thousandth; at most a tenth of all.
        decay: weight decay, of everything but norms.
        clip: the gradient's norm at most; 0: as it is.
        average: decay of the exponential moving average of the weights, which is then what is evaluated and kept; 0:
            none. Of the first steps it averages fewer.
        half: bfloat16 where autocast allows it.
        compile: torch.compile the losses.
        nan: "stop" or "skip", where a gradient is not finite.
        seed: of everything random, from 0.
        workers: processes that read images, on each rank.
        save: also after this many steps within an epoch; 0: after epochs only.

    Raises:
        ValueError: something is out of its range.
    """

    epochs: int
    batch: int
    optimizer: str = "sgd"
    rate: float | None = None
    schedule: str = "step"
    warmup: int = 500
    decay: float = 1e-4
    clip: float = 0.0
    average: float = 0.0
    half: bool = False
    compile: bool = False
    nan: str = "stop"
    seed: int = 0
    workers: int = 2
    save: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("warmup", 0), ("seed", 0), ("workers", 0), ("save", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be in [0, 1), got {self.average}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be above 0, got {self.rate}")
        for name, choices in (("optimizer", tuple(RATES)), ("schedule", ("step", "cosine")), ("nan", ("stop", "skip"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def top_rate(self, world: int) -> float:
        """The learning rate after the warm-up, with this many ranks."""
        if self.rate is not None:
            return self.rate
        share = self.batch * world / BATCH
        return RATES[self.optimizer] * (share if self.optimizer == "sgd" else math.sqrt(share))

    def rate_at(self, step: int, steps: int, world: int) -> float:
        """The learning rate of a step, of ``steps`` in all."""
        warmup = min(self.warmup, steps // 10)
        if step < warmup:
            share = step / warmup
            factor = 0.001 * (1 - share) + share
        elif self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        else:
            factor = 0.1 ** ((3 * step >= 2 * steps) + (9 * step >= 8 * steps))
        return self.top_rate(world) * factor

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
