"""Public names and signatures of torchvision.ops and torchvision.models, and where ours differ from them."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

PACKAGES = ("ops", "models", "models.detection")


class Differences(NamedTuple):
    """Names such as ``ops.boxes.nms``, ``ops.roi_align.RoIAlign.forward`` and ``ops.boxes.nms(scores)``."""

    missing: set[str]  # what torchvision has and fastmask does not; of a missing module only the module
    imported: set[
        str
    ]  # the same of a name that torchvision's module imports, and that fastmask has where it is defined
    added: set[str]  # what fastmask has in a shared class, among a function's arguments or in ``__all__`` besides
    differs: set[str]  # arguments of both with another kind, position or default; other base classes; imports of others


def find_differences() -> Differences:
    """Compare what is installed of torchvision's ops and models with fastmask."""
    found = Differences(set(), set(), set(), set())
    for name in list_modules():
        theirs = importlib.import_module(f"torchvision.{name}")
        ours = import_ours(name)
        if ours is None:
            found.missing.add(name)
        else:
            compare_modules(name, theirs, ours, found)
    return found


def list_modules() -> list[str]:
    """The packages and their modules; of further subpackages only the names."""
    names = list(PACKAGES)
    for package in PACKAGES:
        path = importlib.import_module(f"torchvision.{package}").__path__
        modules = [module.name for module in pkgutil.iter_modules(path)]
        names += [f"{package}.{module}" for module in modules if module[0] != "_" or module in ("_api", "_utils")]
    return list(dict.fromkeys(names))


def import_ours(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"fastmask.{name}")
    except ModuleNotFoundError:
        return None


def compare_modules(name: str, theirs: ModuleType, ours: ModuleType, found: Differences) -> None:
    for key, value in vars(theirs).items():
        if key.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        home = value.__module__.removeprefix("torchvision.")
        if not home.startswith(("ops", "models")):
            continue
        if hasattr(ours, key):
            if home == name:
                compare(f"{name}.{key}", value, getattr(ours, key), found)
            elif getattr(ours, key) is not getattr(import_ours(home), key, None):
                found.differs.add(f"{name}.{key}")
        elif home == name:
            found.missing.add(f"{name}.{key}")
        elif hasattr(import_ours(home), key):  # or else it is missing there
            (found.missing if name in PACKAGES else found.imported).add(f"{name}.{key}")
    if name in PACKAGES:
        found.added.update(f"{name}.{key}" for key in ours.__all__ if not hasattr(theirs, key))


def compare(name: str, theirs: Any, ours: Any, found: Differences) -> None:
    """A function; or a class, with what it defines itself."""
    compare_arguments(name, theirs, ours, found)
    if not inspect.isclass(theirs):
        return
    found.differs.update(f"{name}: no {base.__name__}" for base in theirs.__mro__[1:] if not is_one(ours, base))
    for key, value in vars(theirs).items():
        if key.startswith("_"):
            continue
        if not hasattr(ours, key) or getattr(ours, key) is getattr(nn.Module, key, None):
            found.missing.add(f"{name}.{key}")
        elif inspect.isfunction(getattr(value, "__func__", value)):
            compare_arguments(f"{name}.{key}", getattr(theirs, key), getattr(ours, key), found)
    shared = {base.__name__ for base in theirs.__mro__[1:]}
    bases = [base for base in ours.__mro__ if base.__name__ not in shared and base.__module__[:5] != "torch"]
    added = {key for base in bases for key in vars(base) if not key.startswith("_") and not hasattr(theirs, key)}
    found.added.update(f"{name}.{key}" for key in added)


def is_one(ours: type, base: type) -> bool:
    """Whether our class is of a base of torchvision's class: PyTorch's, or ours in the place of torchvision's."""
    if not base.__module__.startswith("torchvision."):
        return issubclass(ours, base)
    counterpart = getattr(import_ours(base.__module__.removeprefix("torchvision.")), base.__name__, None)
    return counterpart is None or issubclass(ours, counterpart)


def compare_objects(theirs: Any, ours: Any, found: Differences) -> None:
    """Attributes of two objects, and of the modules and of torchvision's objects in them."""
    name = f"{type(theirs).__module__}.{type(theirs).__qualname__}"
    wanted, actual = public_state(theirs), public_state(ours)
    if name.startswith("torchvision."):
        name = name.removeprefix("torchvision.")
        found.missing.update(f"{name}.{key}" for key in wanted if not hasattr(ours, key))
        found.added.update(f"{name}.{key}" for key in actual if not hasattr(theirs, key))
    for key, value in wanted.items():
        inside = isinstance(value, nn.Module) or type(value).__module__.startswith("torchvision.")
        if inside and hasattr(ours, key):
            compare_objects(value, getattr(ours, key), found)


def public_state(instance: Any) -> dict[str, Any]:
    """Attributes of an object, and submodules and buffers of a module."""
    state = vars(instance)
    state = state | state.get("_modules", {}) | state.get("_buffers", {})
    return {key: value for key, value in state.items() if not key.startswith("_")}


def compare_arguments(name: str, theirs: Any, ours: Any, found: Differences) -> None:
    wanted, actual = read_arguments(theirs), read_arguments(ours)
    found.missing.update(f"{name}({key})" for key in wanted.keys() - actual.keys())
    found.added.update(f"{name}({key})" for key in actual.keys() - wanted.keys())
    found.differs.update(f"{name}({key})" for key in wanted.keys() & actual.keys() if wanted[key] != actual[key])


def read_arguments(function: Any) -> dict[str, tuple[Any, ...]]:
    """For each argument its kind, its position where that counts, and its default."""
    arguments: dict[str, tuple[Any, ...]] = {}
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind)
        place = None if stars or parameter.kind is parameter.KEYWORD_ONLY else position
        default = repr(parameter.default).replace("torchvision.", "").replace("fastmask.", "")
        arguments[stars or parameter.name] = (parameter.kind, place, default)
    return arguments
