"""How times grow with the number of RoIs, boxes or pixels: the exponent of a power law, fitted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

POINTS = 3  # that a fit needs at least


class Growth(NamedTuple):
    """One operation of one provider."""

    numbers: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        return slope([math.log(number) for number in self.numbers], [math.log(time) for time in self.seconds])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line that is nearest in squares."""
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def grown(groups: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Growth]]:
    """By (operation, what grows) and provider; only where there are enough points."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for rows in groups.values():
        for provider, row in rows.items():
            for operation, what, number in row["extra_info"]["scales"]:
                points = found.setdefault((operation, what), {}).setdefault(provider, {})
                points[number] = row["stats"]["median"]
    return {
        key: {
            provider: Growth(sorted(points), [points[number] for number in sorted(points)])
            for provider, points in providers.items()
            if len(points) >= POINTS
        }
        for key, providers in found.items()
        if any(len(points) >= POINTS for points in providers.values())
    }


def growth(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table: time grows as the number to the power of ...; empty where nothing was measured at several numbers."""
    lines = []
    for (operation, what), providers in grown(groups).items():
        numbers = next(iter(providers.values())).numbers
        powers = ", ".join(f"{provider} {one.exponent:.2f}" for provider, one in providers.items())
        lines.append(f"| {operation} | {what}, {numbers[0]} to {numbers[-1]} | {powers} |")
    head = ["| | with the number of | time grows with its power |", "|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n" if lines else ""
