"""Learning rates, and settings out of their range."""

import math

import pytest

from fastmask.training import TrainConfig


def test_learning_rates() -> None:
    """The paper's: 0.02 for 16 images, a tenth from two thirds on, a hundredth from eight ninths on."""
    config = TrainConfig(12, 2, warmup=90)
    assert config.peak_lr(8) == pytest.approx(0.02)
    assert config.peak_lr(1) == pytest.approx(0.0025)
    lrs = [config.lr_at(step, 900, 8) for step in range(900)]
    assert lrs[0] == pytest.approx(0.02 / 1000)
    assert lrs[45] == pytest.approx(0.02 * 0.5005)
    assert lrs[90] == lrs[599] == pytest.approx(0.02)
    assert lrs[600] == lrs[799] == pytest.approx(0.002)
    assert lrs[800] == lrs[899] == pytest.approx(0.0002)
    short = TrainConfig(1, 2, warmup=500)
    assert short.lr_at(10, 100, 1) == short.peak_lr(1)  # a tenth of all steps at most
    assert short.lr_at(0, 3, 1) == short.peak_lr(1)


def test_cosine_and_adamw() -> None:
    config = TrainConfig(1, 4, optimizer="adamw", schedule="cosine", warmup=0)
    assert config.peak_lr(4) == pytest.approx(2e-4)
    assert config.peak_lr(1) == pytest.approx(1e-4)
    lrs = [config.lr_at(step, 1000, 4) for step in range(1000)]
    assert lrs[0] == pytest.approx(2e-4)
    assert lrs[500] == pytest.approx(1e-4)
    assert 0 < lrs[-1] < 1e-8
    assert lrs == sorted(lrs, reverse=True)
    assert TrainConfig(1, 4, lr=0.5).peak_lr(7) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, got 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of step, cosine, got 'linear'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of stop, skip, got 'ignore'"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": math.nan}, "lr must be above 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be at least 0, got nan"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"zoom": (0.5, 2.0)}, "size must be given with zoom"),
        ({"sampling_ratio": (2, -1)}, "sampling_ratio must be at least 0, got -1"),
        ({"mask_head": "u-net"}, "mask_head must be one of fcn, unet, got 'u-net'"),
        ({"box_loss": "iou"}, "box_loss must be one of smooth_l1, l1, weighted_smooth_l1, giou, diou, ciou, got 'iou'"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"epochs": 1, **options})
