"""``fastmask selftest``: every check passes here; planted errors are found and named."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastmask.cli import main
from fastmask.selftest import op_cases
from fastmask.selftest.on_device import check_equal
from fastmask.selftest.report import describe_results, format_failures, format_table
from fastmask.selftest.run import COLUMNS, Result, list_checks, run_checks

CPU = torch.device("cpu")


def run(row: str, *columns: str) -> list[Result]:
    """Those of a row, or some of them."""
    checks = [check for check in list_checks(CPU, 0) if check.row == row and check.column in (columns or COLUMNS)]
    return run_checks(checks, 0, progress=False)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["a third", "all"])
def test_all_is_well_on_the_cpu(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Of the ops; tests/kernels have the others' fallbacks in each run as well."""
    path, chosen = tmp_path / "selftest.json", op_cases.list_op_cases()[seed % step :: step]
    monkeypatch.setattr("fastmask.selftest.run.list_op_cases", lambda: chosen)
    assert main(["selftest", "--device", "cpu", "--seed", str(seed), "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"--seed {seed}; Triton for" in out or f"--seed {seed}; eager PyTorch" in out
    table = [line.split() for line in out.splitlines() if " ok" in line]
    cases = len(chosen)
    assert len(table) == cases + 1
    assert sum(row.count("ok") for row in table) == 7 * cases + 3
    assert f"{7 * cases + 3} checks in" in out
    assert "report" not in out
    saved = json.loads(path.read_text())
    assert (saved["seed"], saved["tests"], saved["failures"], saved["finished"]) == (
        seed,
        7 * cases + 3,
        0,
        True,
    )
    assert {word for row in saved["checks"].values() for word in row.values()} == {"ok"}


def test_what_is_drawn_is_the_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    original = op_cases.paste_masks_op
    monkeypatch.setattr(op_cases, "paste_masks_op", lambda masks, *rest: drawn.append(masks) or original(masks, *rest))
    state = torch.random.get_rng_state()
    for _ in range(2):
        run("paste, float")
        torch.rand(7)
    assert not torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(drawn[:7], drawn[7:], strict=True))


def test_a_wrong_value_and_an_error_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = op_cases.paste_masks_op

    def wrong(masks: Tensor, *rest: object) -> Tensor:
        if masks.dtype == torch.float16:
            raise RuntimeError("out of\nresources")
        out = original(masks, *rest)
        if masks.dtype == torch.bfloat16:
            out[0, 20:] += 0.25
        return out

    monkeypatch.setattr(op_cases, "paste_masks_op", wrong)
    results = run("paste, float")
    words = {result.check.column: result.word for result in results}
    assert words.pop("bfloat16") == "differs"
    assert words.pop("float16") == "fails"
    assert set(words.values()) == {"ok"}
    row = format_table(results).splitlines()[1]
    assert row.split() == ["paste,", "float", "ok", "ok", "fails", "differs", "ok", "ok", "ok"]
    saved = describe_results(results)
    assert (saved["tests"], saved["failures"]) == (7, 2)
    assert saved["checks"]["paste, float"]["float16"] == "fails: RuntimeError: out of resources"
    text = format_failures(results, 7)
    assert "paste, float, float16, fails: RuntimeError: out of resources" in text
    assert "paste, float, bfloat16, differs: Tensor-likes are not close!" in text
    assert "--seed 7" in text
    assert "FASTMASK_KERNELS=off:paste_masks takes eager PyTorch instead" in text


@pytest.mark.parametrize("row", [case.name for case in op_cases.list_op_cases()])
def test_every_op_can_fail(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change one number of the first output, by 1 where it is an integer."""
    (case,) = (case for case in op_cases.list_op_cases() if case.name == row)

    def call(*inputs: Tensor) -> list[Tensor]:
        outputs = case.call(*inputs)
        first = outputs[0].clone().flatten()
        place = int((first != 0).nonzero()[0])
        first[place] = ~first[place] if first.dtype == torch.bool else first[place] + 1
        return [first.view(outputs[0].shape), *outputs[1:]]

    monkeypatch.setattr("fastmask.selftest.run.list_op_cases", lambda: [case._replace(call=call)])
    assert [result.word for result in run(row, "float32")] == ["differs"]


def test_a_model_that_finds_something_else_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.selftest import model_case

    class Shifted(model_case.Predictor):
        def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            return [
                found | {"boxes": found["boxes"] + 2, "masks": found["masks"].roll(9, 2)}
                for found in super().__call__(images)
            ]

    monkeypatch.setattr(model_case, "Predictor", Shifted)
    assert [result.word for result in run("Mask R-CNN", "float32", "bfloat16")] == ["differs"] * 2


def test_bits_are_compared() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    check_equal([nan, nan.long()], [nan.clone(), nan.long()])
    with pytest.raises(AssertionError, match="output 1 differs in 1 of 8 bytes"):
        check_equal([nan, nan], [nan, torch.tensor([float("nan"), -0.0])])
    with pytest.raises(AssertionError, match=r"output 0 is \(2,\), not \(1,\)"):
        check_equal([nan], [nan[:1]])


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", "fpga"]) == 2
    assert "fastmask selftest: --device must be one that this machine has, got 'fpga'" in capsys.readouterr().err
    assert main(["selftest", "--device", "cpu", "--json", str(tmp_path / "no" / "file.json")]) == 2
    assert "file.json: no such file or directory" in capsys.readouterr().err
