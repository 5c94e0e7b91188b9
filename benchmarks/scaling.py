"""How times scale with the number of RoIs, boxes or pixels: the exponent of a power law, fitted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

POINTS = 3  # that a fit needs at least


class Scaling(NamedTuple):
    """Median times of one operation of one provider, by the number of inputs."""

    numbers: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        return fit_slope([math.log(number) for number in self.numbers], [math.log(time) for time in self.seconds])


def fit_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line."""
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def fit_scaling(groups: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Scaling]]:
    """Curves by (operation, inputs that are counted) and provider; only those with enough points."""
    curves: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for rows in groups.values():
        for provider, row in rows.items():
            for operation, what, number in row["extra_info"]["scales"]:
                points = curves.setdefault((operation, what), {}).setdefault(provider, {})
                points[number] = row["stats"]["median"]
    return {
        key: {
            provider: Scaling(sorted(points), [points[number] for number in sorted(points)])
            for provider, points in providers.items()
            if len(points) >= POINTS
        }
        for key, providers in curves.items()
        if any(len(points) >= POINTS for points in providers.values())
    }


def format_scaling(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of exponents; empty where nothing was measured at several numbers."""
    lines = []
    for (operation, what), providers in fit_scaling(groups).items():
        numbers = next(iter(providers.values())).numbers
        powers = ", ".join(f"{provider} {curve.exponent:.2f}" for provider, curve in providers.items())
        lines.append(f"| {operation} | {what}, {numbers[0]} to {numbers[-1]} | {powers} |")
    head = ["| operation | number of | time scales as its power |", "|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n" if lines else ""
