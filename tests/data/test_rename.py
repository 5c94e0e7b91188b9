"""Other names of classes: merged where two are alike, ids kept, the command, messages."""

from pathlib import Path

import pytest

from fastmask.cli import main
from fastmask.data import Dataset, Instance, Record, read_dataset, rename_classes
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.skeletons import PERSON

INSTANCES = tuple(Instance(name, box=(0, 0, 2, 2)) for name in ("car", "bus", "dog"))
DATASET = Dataset([Record(Path("a.jpg"), (4, 4), INSTANCES)], {"car": 3, "bus": 7, "dog": 9}, [], ("read",), {})


def test_classes_of_one_name_are_one() -> None:
    renamed = rename_classes(DATASET, {"car": "vehicle", "bus": "vehicle"})
    assert renamed.categories == {"vehicle": 3, "dog": 9}
    assert [each.category for each in renamed.records[0].instances] == ["vehicle", "vehicle", "dog"]
    swapped = rename_classes(DATASET, {"car": "bus", "bus": "car"})
    assert swapped.categories == {"bus": 3, "car": 7, "dog": 9}
    assert [each.category for each in swapped.records[0].instances] == ["bus", "car", "dog"]
    assert rename_classes(DATASET._replace(skeletons={"dog": PERSON}), {"dog": "cat"}).skeletons == {"cat": PERSON}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cat": "dog"}, r"names must be of classes \(car, bus, dog\), got 'cat'"),
        ({"car": " "}, "names must not be empty, got ' ' for car"),
        ({"car": "dog"}, r"got other ones in dog \(dog\)"),
    ],
)
def test_messages(names: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rename_classes(DATASET._replace(skeletons={"dog": PERSON}), names)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_synthetic(synthetic_dataset(3, 1, (40, 40)), tmp_path / "drawn")
    before = read_dataset(tmp_path / "drawn")
    command = ["data", "convert", str(tmp_path / "drawn"), str(tmp_path / "renamed.json"), "--to", "coco", "--rename"]
    assert main([*command, "ellipse=round", "triangle=corners", "quadrilateral=corners"]) == 0
    after = read_dataset(tmp_path / "renamed.json")
    assert after.categories == {"round": 1, "corners": 2}
    names = {"ellipse": "round", "triangle": "corners", "quadrilateral": "corners"}
    for record, other in zip(after.records, before.records, strict=True):
        assert [each.category for each in record.instances] == [names[each.category] for each in other.instances]
    for names, message in ((["ellipse"], "OLD=NEW, got 'ellipse'"), (["a=b"], "of classes (ellipse, triangle, ")):
        assert main([*command, *names]) == 2
        assert f"--rename must be {message}" in capsys.readouterr().err
