"""Who may import whom: the floors of the house. Read off the source, so that lazy imports count as well."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (  # from the top down: a room imports from floors below its own
    {"__main__"},
    {"cli"},
    {"benchmarks", "selftest"},
    {"training", "export"},
    {"demo"},
    {"evaluation"},
    {"__init__"},  # fastmask's own names, each imported when it is first touched
    {"inference", "compat"},
    {"models"},
    {"ops"},
    {"kernels"},
    {"data"},
    {"interop"},
    {"visualize", "structures", "checks", "distributed", "preprocess"},
    {"cocoapi", "files", "fonts", "image_io", "sizes", "skeletons", "variants", "_version"},
)


def find_modules() -> dict[str, Path]:
    """Source files by module name."""
    modules = {}
    for folder in (ROOT / "fastmask", ROOT / "kernels", ROOT / "export", ROOT / "benchmarks"):
        prefix = [] if folder.name == "fastmask" else [folder.name]
        for path in folder.rglob("*.py"):  # does not enter the links to the other three
            parts = ["fastmask", *prefix, *path.relative_to(folder).with_suffix("").parts]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} has a relative import"
            for alias in node.names:  # a submodule, or a name of the module
                whole = f"{node.module}.{alias.name}"
                yield from [whole] if whole in modules else [node.module] if node.module in modules else []


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


MODULES = find_modules()
GRAPH = {module: sorted(set(imports_of(path, MODULES)) - {module}) for module, path in MODULES.items()}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def test_no_module_is_forgotten() -> None:
    assert {room_of(module) for module in MODULES} == set(FLOOR)
    assert sum(map(len, GRAPH.values())) > 500


def test_no_import_goes_up_a_floor() -> None:
    for module, found in GRAPH.items():
        for other in found:
            one, two = room_of(module), room_of(other)
            assert one == two or FLOOR[one] < FLOOR[two], f"{module} imports {other}, which is not below it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Packages count as modules: whoever imports a.b.c from outside of a.b runs a/b/__init__.py first."""
    graph = {module: set(found) for module, found in GRAPH.items()}
    for module, found in GRAPH.items():
        for other in found:
            parts = other.split(".")
            packages = {".".join(parts[:end]) for end in range(2, len(parts))}
            graph[module] |= {package for package in packages if not f"{module}.".startswith(f"{package}.")}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names one


@pytest.mark.parametrize("bad", ["fastmask.kernels.nms -> fastmask.ops.boxes", "fastmask.ops.boxes -> fastmask.cli"])
def test_an_import_upwards_is_seen(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, other = bad.partition(" -> ")
    monkeypatch.setitem(GRAPH, module, [other])
    with pytest.raises(AssertionError, match="not below it"):
        test_no_import_goes_up_a_floor()
