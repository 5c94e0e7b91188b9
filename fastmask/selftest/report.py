"""Reports of a self-test: a table, a file, and the failures."""

from collections.abc import Sequence
from typing import Any

from fastmask.selftest.run import COLUMNS, Result


def format_table(results: Sequence[Result]) -> str:
    """Format a row for each op and a column for each kind of check; a dash where the device has no such check."""
    cells = {(result.check.row, result.check.column): result.word for result in results}
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = [column for column in COLUMNS if any((row, column) in cells for row in rows)]
    widths = [max(len(column), len("differs")) for column in columns]
    lines = [" " * 25 + "  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True))]
    for row in rows:
        words = [cells.get((row, column), "-").ljust(width) for column, width in zip(columns, widths, strict=True)]
        lines.append(f"{row:25}" + "  ".join(words))
    return "\n".join(line.rstrip() for line in lines)


def describe_results(results: Sequence[Result]) -> dict[str, Any]:
    """Describe the results for a file: numbers of checks and failures, and the word of each check, with its reason."""
    checks: dict[str, dict[str, str]] = {}
    for check, word, detail in results:
        checks.setdefault(check.row, {})[check.column] = f"{word}: {detail}" if detail else word
    bad = sum(result.word != "ok" for result in results)
    return {"tests": len(results), "failures": bad, "checks": checks, "finished": True}


def format_failures(results: Sequence[Result], seed: int) -> str:
    """Format the failures, what to report, and a workaround; empty if there are none."""
    bad = [result for result in results if result.word != "ok"]
    if not bad:
        return ""
    lines = [f"{result.check.row}, {result.check.column}, {result.word}: {result.detail}" for result in bad]
    ops = sorted({result.check.op for result in bad if result.check.op is not None})
    around = f" Until it is fixed, FASTMASK_KERNELS=off:{','.join(ops)} takes eager PyTorch instead." if ops else ""
    advice = f"Please report this table, these lines, --seed {seed} and what `fastmask env` prints.{around}"
    return "\n".join([*lines, "", advice])
