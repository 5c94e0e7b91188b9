"""The ops' implementations, installed as ``fastmask.kernels`` and private to ``fastmask.ops``.

reference.py specifies every op; fallback/ has the eager fallbacks, for devices and inputs without a kernel; triton/ has
the Triton kernels with their launchers and variants, and launch.py registers them; each file named as an op registers
that ``fastmask::`` op and its backward.
"""

if __name__ == "kernels":  # on sys.path at the repository's root; PyPI has another package of that name
    raise ImportError("import this package as fastmask.kernels (`pip install -e .` first), not as kernels")
