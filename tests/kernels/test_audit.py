"""Audit of the compiled Triton kernels, without a GPU: no spills, wide accesses, no atomics."""

import re

import pytest

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("compiles ahead of time, which Triton's interpreter cannot", allow_module_level=True)

import triton

from fastmask.kernels import audit
from fastmask.kernels.triton.roi_align import _forward_kernel
from fastmask.kernels.triton.roi_geometry import VARYING

AUDITED = ("3.8.0", "3.9.0")  # register counts change with Triton's version; the others' kernels must compile
ROI_LOADS = 5  # of 4 bytes: image, x1, y1, x2, y2


@pytest.fixture(scope="module", params=["default variants", pytest.param("all variants", marks=pytest.mark.slow)])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[audit.Report]:
    quick = request.param == "default variants"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))  # nothing compiled earlier
        if quick:
            return audit.reports(["sm_90"], quick_names())
        names = [variant.name for variant in audit.variants()]
        return audit.reports(audit.ARCHITECTURES if triton.__version__ in AUDITED else ["sm_90"], names)


def quick_names() -> list[str]:
    """The default variants, in bfloat16 where they come in several dtypes."""
    names = [variant.name for variant in audit.variants() if variant.default]
    halved = [re.sub("fp16|fp32", "bf16", name) for name in names]
    return [name for name, half in zip(names, halved, strict=True) if half == name or half not in names]


def test_every_variant_compiles(reports: list[audit.Report]) -> None:
    names = [variant.name for variant in audit.variants()]
    assert len(names) == len(set(names))
    found = [report.name for report in reports if report.architecture == "sm_90"]
    assert found in (names, quick_names())
    assert all(report.registers > 0 for report in reports)
    for report in reports:
        if "backward" in report.name and "keys" not in report.name:
            assert not [kind for kind in report.accesses if kind.startswith(("RED", "ATOM"))], report.name


def test_every_kernel_has_variants() -> None:
    kernels = {v for module in audit.modules() for name, v in vars(module).items() if name.endswith("_kernel")}
    assert {variant.kernel for variant in audit.shipped_variants()} == kernels
    assert len(kernels) > 30


@pytest.mark.skipif(triton.__version__ not in AUDITED, reason=f"counted with Triton {AUDITED} only")
def test_nothing_is_spilled_and_hot_accesses_are_wide(reports: list[audit.Report]) -> None:
    wide = {variant.name: variant.wide for variant in audit.variants()}
    for report in reports:
        assert report.spilled_bytes == 0, report
        assert not [kind for kind in report.accesses if kind.startswith(("LDL", "STL"))], report
        for kind in wide[report.name] if report.accesses else ():
            narrow = {k: n for k, n in report.accesses.items() if k.startswith(kind) and not k.endswith(".128")}
            assert f"{kind}.128" in report.accesses, report
            if "RoIAlign backward" in report.name and kind == "LDG":
                # the RoIs' table is read by words, and where a gradient is NaN, one element a thread and bin
                narrow = {k: n for k, n in narrow.items() if k != "LDG.32" and (k, n) != ("LDG.16", 1)}
            if "epilogue" in report.name and kind == "LDG":
                narrow = {k: n for k, n in narrow.items() if n > 1}  # the bias
            assert narrow == {} or (kind == "LDG" and narrow == {"LDG.32": ROI_LOADS}), report


def test_what_varies_is_no_key() -> None:
    """Sizes and strides of the maps and numbers of images and RoIs never make a new variant."""
    fixed = [param.name for param in _forward_kernel.params if not param.do_not_specialize and not param.is_constexpr]
    assert [name for name in fixed if not name.endswith("_ptr")] == [
        "channels",
        *(f"scale{i}" for i in range(5)),
        *(f"limit{i}" for i in range(4)),
    ]
    assert set(VARYING) >= {"batch", "num_rois", "height0", "stride_y4"}


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(iter(audit.variants()))
    report = audit.compile_variant(first, "sm_90")
    asked: list[object] = []
    monkeypatch.setattr(audit, "reports", lambda *arguments: asked.append(arguments) or [report])
    names = [variant.name for variant in audit.variants()]
    default = [variant.name for variant in audit.variants() if variant.default]
    monkeypatch.setattr("sys.argv", ["audit", "--arch", "sm_90"])
    audit.main()
    assert first.name in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["audit", "--quick", "--json"])
    audit.main()
    assert '"architecture": "sm_90"' in capsys.readouterr().out
    assert asked == [(["sm_90"], names), ([*audit.ARCHITECTURES], default)]
    assert len(names) > len(default) > 50
