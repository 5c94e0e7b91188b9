"""``jit``: ``triton.jit`` for kernels that the host launches, with less Python between a launch and the GPU.

``kernel[grid](...)`` stays as it is. Triton binds the arguments, asks what each one is specialized on, makes a string
of that, builds metadata for hooks, and calls the hooks: 29 us for RoIAlign's 58 arguments on a CPU, with Triton 3.6. A
:class:`Kernel` keeps what Triton compiled under a key of the same facts, each from Triton's own function, and launches
it directly: 12 us. A :class:`Plan` holds all that is no tensor, for launches that repeat: 5 us.

Everything else uses Triton's own launcher: the first launch of a specialization, hooks of Triton or of a kernel, a
patched ``JITFunction.run``, and unknown versions of Triton.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from fastmask.kernels.launch import INTERPRET

FIRST, PAST = (3, 6), (3, 9)  # Triton's versions whose JITFunction.run is known here
MAX_CACHED = 4096  # launches with different facts, of each kernel, device and way of calling, and of each plan


def is_known(version: str) -> bool:
    """Whether this is a version of Triton whose launches may be shortened."""
    return FIRST <= tuple(int(part) for part in version.split(".")[:2]) < PAST


DIRECT = not INTERPRET and is_known(triton.__version__)
_RUN = JITFunction.run
if DIRECT:
    from triton import knobs
    from triton._C.libtriton import native_specialize_impl
    from triton.runtime.driver import driver

Bind = Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]
Found = tuple[Any, dict[tuple[int, tuple[str, ...]], tuple[Bind, dict[Any, Any]]]]


class Kernel(JITFunction):  # type: ignore[misc, unused-ignore]
    """A kernel that is launched from the host, by ``kernel[grid](...)`` or a :class:`Plan`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._found: dict[int, Found] = {}  # by device: Triton's cache, and what was launched from it
        self._globals: list[tuple[dict[str, Any], str, Any]] = []  # what it reads of its modules, as Triton last saw it

    def __getitem__(self, grid: Any) -> Any:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Launch as ``JITFunction.run`` does -> the compiled kernel."""
        device = self.usual_device()
        if device is None or callable(grid):
            return self.run(*args, grid=grid, warmup=False, **kwargs)
        bind, found = self.found_on(device, len(args), tuple(kwargs))
        facts, values = bind(*args, *kwargs.values())
        key = (facts, knobs.runtime.debug, knobs.compilation.instrumentation_mode)
        kernel = found.get(key)
        if kernel is None:
            kernel = self.run(*args, grid=grid, warmup=False, **kwargs)
            if is_compiled(kernel):
                used = self.used_global_vals.items()
                self._globals = [(place, name, place.get(name)) for (name, _), (_, place) in used]
                _remember(found, key, kernel)
            return kernel
        enqueue(kernel, grid, device, values)
        return kernel

    def usual_device(self) -> int | None:
        """The current device, if nothing but the arguments decides what a launch does."""
        if not DIRECT or JITFunction.run is not _RUN or self.pre_run_hooks:
            return None
        runtime = knobs.runtime
        hooks = getattr(runtime.launch_enter_hook, "calls", True) or getattr(runtime.launch_exit_hook, "calls", True)
        if hooks or runtime.add_stages_inspection_hook:
            return None
        for place, name, value in self._globals:
            if place.get(name) is not value:  # Triton compares them again, and may raise
                return None
        return driver.active.get_current_device()  # type: ignore[no-any-return]

    def found_on(self, device: int, positional: int, names: tuple[str, ...]) -> tuple[Bind, dict[Any, Any]]:
        """Argument binder for this form of call, and the kernels that Triton compiled and launched, by their keys."""
        caches = self.device_caches[device]
        found = self._found.get(device)
        if found is None or found[0] is not caches:  # or Triton's cache was cleared
            found = self._found[device] = caches, {}
        way = found[1].get((positional, names))
        if way is None:
            way = found[1][positional, names] = self._make_bind(caches[3], positional, names), {}
        return way

    def _make_bind(self, backend: Any, positional: int, names: tuple[str, ...]) -> Bind:
        """Make a function of a launch's arguments in this order -> the facts of Triton's key, the parameters' values.

        Raises:
            TypeError: they do not fit the kernel.
        """
        self.signature.bind(*[None] * positional, **{name: None for name in names if name in self.signature.parameters})
        given = [*self.arg_names[:positional], *names]
        options = [f"{name}, {name}.__class__" for name in names if name not in self.signature.parameters]
        defaults = {p.name: p.default for p in self.params if p.name not in given}
        source = (
            f"def bind({', '.join(given)}):\n"
            f"    return ({''.join(f'{fact}, ' for fact in [*self._facts(), *options])}), "
            f"({''.join(f'{name}, ' for name in self.arg_names)})\n"
        )
        scope: dict[str, Any] = {"_specialize": native_specialize_impl, "_backend": backend, **defaults}
        exec(source, scope)
        return scope["bind"]  # type: ignore[no-any-return]

    def _facts(self) -> Iterator[str]:
        """Python expressions of the facts of each parameter in Triton's key; as in triton.runtime.jit."""
        for p in self.params:
            assert p.is_constexpr or not p.annotation_type, f"{p.name} must not be annotated: Triton skips what is"
            rules = f"{p.is_const}, {not p.do_not_specialize}, {not p.do_not_specialize_on_alignment}"
            yield p.name if p.is_constexpr else f"_specialize(_backend, {p.name}, {rules})"


class Plan:
    """All of a launch but the tensors: ``plan(*tensors)`` is ``kernel[grid](*tensors, **numbers)``.

    Created once and reused. The tensors are the kernel's first parameters, specialized on type and alignment.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], **numbers: Any) -> None:
        self.kernel, self.grid, self.numbers = kernel, grid, numbers
        self._found: dict[Any, tuple[Any, Any, tuple[Any, ...]]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        device = self.kernel.usual_device() if DIRECT else None
        if device is None:
            return self.kernel[self.grid](*tensors, **self.numbers)
        caches = self.kernel.device_caches[device]
        facts = [native_specialize_impl(caches[3], tensor, False, True, True) for tensor in tensors]
        key = (device, knobs.runtime.debug, knobs.compilation.instrumentation_mode, *facts)
        found = self._found.get(key)
        if found is None or found[0] is not caches:
            kernel = self.kernel[self.grid](*tensors, **self.numbers)
            if is_compiled(kernel):
                bind, _ = self.kernel.found_on(device, len(tensors), tuple(self.numbers))
                values = bind(*tensors, *self.numbers.values())[1][len(tensors) :]
                _remember(self._found, key, (caches, kernel, values))
            return kernel
        enqueue(found[1], self.grid, device, (*tensors, *found[2]))
        return found[1]


def is_compiled(kernel: Any) -> bool:
    """Whether a launch has compiled its kernel: a hook may have stopped it, or AsyncCompileMode may be running."""
    return kernel is not None and not hasattr(kernel, "result")


def enqueue(kernel: Any, grid: Sequence[int], device: int, values: Sequence[Any]) -> None:
    """Launch what Triton compiled on the device's current stream, where no hook wants to know."""
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(device)
    kernel.run(x, y, z, stream, kernel.function, kernel.packed_metadata, None, None, None, *values)


def _remember(found: dict[Any, Any], key: Any, value: Any) -> None:
    if len(found) < MAX_CACHED:
        found[key] = value


def jit(function: Callable[..., Any] | None = None, *, do_not_specialize: Sequence[str] = ()) -> Any:
    """``triton.jit`` for a kernel that the host launches; functions that kernels call stay ``triton.jit``."""
    if function is None:
        return functools.partial(jit, do_not_specialize=do_not_specialize)
    if INTERPRET:
        return triton.jit(function, do_not_specialize=list(do_not_specialize))
    return Kernel(function, do_not_specialize=list(do_not_specialize))
