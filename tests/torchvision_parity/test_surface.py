"""Names and signatures of torchvision's ops and models against ours: what differs is in exceptions.toml, and in README.

A class's arguments, attributes and bases count; so do the attributes of models that are built. helpers/surface.py.
"""

import importlib
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from helpers.pages import PAGES
from helpers.slim import slim_model
from helpers.surface import Differences, compare, compare_modules, compare_objects, find_differences
from torch import nn

import fastmask
from fastmask.checks import NOT_PROVIDED

EXCEPTIONS = tomllib.loads((Path(__file__).parent / "exceptions.toml").read_text())
SECTIONS = {"Not provided": ("missing", "imported"), "Added": ("added",)}  # of compat/README.md


@pytest.fixture(scope="module")
def differences() -> Differences:
    found = find_differences()
    with torch.device("meta"):
        mobilenet = lambda library: library.models.mobilenet_v3_small(weights=None)  # noqa: E731
        for build in (slim_model, lambda library: library.models.resnet18(weights=None), mobilenet):
            compare_objects(build(torchvision), build(fastmask), found)
    return found


@pytest.mark.parametrize("kind", Differences._fields)
def test_differences_are_the_exceptions(kind: str, differences: Differences) -> None:
    """Neither another one, nor one that is no more."""
    assert getattr(differences, kind) == set(EXCEPTIONS[kind])


@pytest.mark.parametrize("section", SECTIONS)
def test_page_lists_the_exceptions(section: str) -> None:
    expected = {name for kind in SECTIONS[section] for name in EXCEPTIONS[kind]}
    assert read_page(section) == expected


def test_no_other_difference() -> None:
    """The page has no section of arguments in other places."""
    assert not EXCEPTIONS["differs"]


def read_page(section: str) -> set[str]:
    """Names in the bullets of a section, each of what the last "of `...`" names, and as exceptions.toml has it."""
    (text,) = re.findall(
        rf"^## {section}$(.*?)(?=^## |\Z)", PAGES["fastmask/compat/README.md"], re.DOTALL | re.MULTILINE
    )
    names, owner = set(), ""
    for of, name in re.findall(r"(\b[Oo]f\s+)?`([^`]+)`", text.partition("\n- ")[2]):
        if of:
            owner = name
        else:
            names.add(find_exception(owner, name))
    return names


def find_exception(owner: str, name: str) -> str:
    """The entry of a name: its own, or that of the module that is missing with it."""
    if any(f"{owner}.{name}" in names for names in EXCEPTIONS.values()):
        return f"{owner}.{name}"
    theirs: Any = getattr(importlib.import_module(f"torchvision.{owner}"), name)
    home: str = theirs.__module__
    return home.removeprefix("torchvision.")


def test_errors_explain_what_the_ops_lack() -> None:
    assert set(NOT_PROVIDED) == {name for name in torchvision.ops.__all__ if name not in fastmask.ops.__all__}


class Theirs(nn.Module):
    def __init__(self, a: int, b: int = 1, *, c: type = torchvision.ops.RoIAlign) -> None: ...

    def forward(self, x: int) -> None: ...

    def step(self, x: int, y: int) -> None: ...


class Ours(nn.Module):
    def __init__(self, a: int, b: int = 1, *, c: type = fastmask.ops.RoIAlign) -> None: ...

    def forward(self, x: int) -> None: ...

    def step(self, x: int, y: int) -> None: ...


def change(**members: Any) -> type:
    return type("Changed", (Ours,), members)


def swapped(self: Any, y: int, x: int) -> None: ...


def with_more(self: Any, x: int, y: int, z: int = 0, *args: Any) -> None: ...


def by_keyword(self: Any, x: int, *, y: int) -> None: ...


def default(self: Any, a: int, b: int = 2, *, c: type = fastmask.ops.RoIAlign) -> None: ...


def other_class(self: Any, a: int, b: int = 1, *, c: type = fastmask.ops.RoIPool) -> None: ...


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (Ours, {}),
        (change(forward=nn.Module.forward), {"missing": {"T.forward"}}),
        (change(step=lambda self, x: None), {"missing": {"T.step(y)"}}),
        (change(step=swapped), {"differs": {"T.step(x)", "T.step(y)"}}),
        (change(step=with_more), {"added": {"T.step(z)", "T.step(*)"}}),
        (change(step=by_keyword), {"differs": {"T.step(y)"}}),
        (change(__init__=default), {"differs": {"T(b)"}}),
        (change(__init__=other_class), {"differs": {"T(c)"}}),
        (change(more=1), {"added": {"T.more"}}),
        (type("Object", (), dict(vars(Ours))), {"differs": {"T: no Module"}}),
    ],
)
def test_a_difference_is_seen(ours: type, expected: dict[str, set[str]]) -> None:
    found = Differences(set(), set(), set(), set())
    compare("T", Theirs, ours, found)
    assert {kind: names for kind, names in found._asdict().items() if names} == expected


def test_a_module_without_a_name_is_seen() -> None:
    found = Differences(set(), set(), set(), set())
    theirs, ours = torchvision.ops.boxes, SimpleNamespace(nms=print)
    compare_modules("ops.boxes", theirs, ours, found)
    assert {"ops.boxes.box_area", "ops.boxes.masks_to_boxes"} <= found.missing
    assert {"ops.boxes.nms(boxes)", "ops.boxes.nms(scores)", "ops.boxes.nms(iou_threshold)"} <= found.missing
    assert "ops.boxes.nms(sep)" in found.added
