"""README's examples run as printed, and its commands are those that .ci/run calls."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastmask.benchmarks.report import SLOT, filled

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs_as_printed(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_there_are_examples_and_commands() -> None:
    assert EXAMPLES
    assert COMMANDS[:2] == ["pip install . && fastmask --help", "pip install -e '.[test]' && pytest"]


def test_continuous_integration_calls_the_same_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS[:2]:
        assert command in script


def test_tables_are_the_reports() -> None:
    """Numbers in README come from committed results, and from nowhere else."""
    assert SLOT.search(README)
    assert filled(ROOT / "README.md") == README
