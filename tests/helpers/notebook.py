"""The fine-tuning notebook, which is made of its page: ``cd tests && python -m helpers.notebook`` writes it."""

import json
import re
from typing import Any

from helpers.pages import ROOT

PAGE = ROOT / "fastmask" / "training" / "finetune.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")


def split_cells(page: str) -> list[tuple[str, str]]:
    """The page's text and its Python blocks in turns, as ("markdown" or "code", source)."""
    parts = re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)
    kinds = ("markdown", "code")
    return [(kinds[i % 2], part.strip()) for i, part in enumerate(parts) if part.strip()]


def make_notebook(page: str) -> str:
    """The notebook's file, nbformat 4.5."""
    cells: list[dict[str, Any]] = []
    for number, (kind, source) in enumerate(split_cells(page)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(make_notebook(PAGE.read_text()))
