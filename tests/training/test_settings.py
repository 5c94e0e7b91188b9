"""Learning rates and what a run may be told."""

import math

import pytest

from fastmask.training import Settings


def test_rates() -> None:
    """The paper's: 0.02 for 16 images, a tenth from two thirds on, a hundredth from eight ninths on."""
    settings = Settings(12, 2, warmup=90)
    assert settings.top_rate(8) == pytest.approx(0.02)
    assert settings.top_rate(1) == pytest.approx(0.0025)
    rates = [settings.rate_at(step, 900, 8) for step in range(900)]
    assert rates[0] == pytest.approx(0.02 / 1000)
    assert rates[45] == pytest.approx(0.02 * 0.5005)
    assert rates[90] == rates[599] == pytest.approx(0.02)
    assert rates[600] == rates[799] == pytest.approx(0.002)
    assert rates[800] == rates[899] == pytest.approx(0.0002)
    short = Settings(1, 2, warmup=500)
    assert short.rate_at(10, 100, 1) == short.top_rate(1)  # a tenth of all steps at most
    assert short.rate_at(0, 3, 1) == short.top_rate(1)


def test_cosine_and_adamw() -> None:
    settings = Settings(1, 4, optimizer="adamw", schedule="cosine", warmup=0)
    assert settings.top_rate(4) == pytest.approx(2e-4)
    assert settings.top_rate(1) == pytest.approx(1e-4)
    rates = [settings.rate_at(step, 1000, 4) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[500] == pytest.approx(1e-4)
    assert 0 < rates[-1] < 1e-8
    assert rates == sorted(rates, reverse=True)
    assert Settings(1, 4, rate=0.5).top_rate(7) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, got 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of step, cosine, got 'linear'"),
        ({"nan": "ignore"}, "nan must be one of stop, skip, got 'ignore'"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"rate": math.nan}, "rate must be above 0, got nan"),
        ({"decay": -1.0}, "decay must be at least 0, got -1.0"),
        ({"clip": math.nan}, "clip must be at least 0, got nan"),
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**{"epochs": 1, "batch": 2, **options})
