"""The fine-tuning notebook: of its page, and executed."""

import json
import os
from pathlib import Path

import pytest
from helpers.notebook import NOTEBOOK, PAGE, make_notebook, split_cells
from PIL import Image

FOLDER = os.environ.get("FASTMASK_BALLOON", "")


def test_it_is_made_of_its_page() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert NOTEBOOK.read_text() == make_notebook(PAGE.read_text()), "run: cd tests && python -m helpers.notebook"
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * 6
    for cell in cells:
        assert "".join(cell["source"])
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell after the other, in one namespace, as Jupyter runs them; what is displayed is images."""
    if not FOLDER:
        pytest.skip("NO PHOTOGRAPHS: set FASTMASK_BALLOON to the folder of the balloon data set to run this test")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balloon").symlink_to(FOLDER)
    shown: list[Image.Image] = []
    namespace = {"__name__": "__main__", "display": shown.append}
    for kind, source in split_cells(PAGE.read_text()):
        if kind == "code":
            exec(compile(source, "cell", "exec"), namespace)
    for number, image in enumerate(shown):
        image.convert("RGB").save(tmp_path / f"{number}.png")
    print(tmp_path, namespace["result"].metrics["mask"])  # type: ignore[attr-defined]
    assert len(shown) == 4
    assert namespace["result"].metrics["mask"].ap50 > 0.5  # type: ignore[attr-defined]
