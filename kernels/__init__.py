"""The ops' implementations, installed as ``fastmask.kernels`` and private to ``fastmask.ops``.

reference.py is the specification of every op; cpu_*.py are the fast plain-PyTorch paths, used wherever no kernel is
registered for a device; gpu_*.py are Triton kernels with their launchers, which launch.py says where to use; each
remaining file registers one ``fastmask::`` op and its backward.
"""

if __name__ == "kernels":  # on sys.path at the repository's root; PyPI has another package of that name
    raise ImportError("import this package as fastmask.kernels (`pip install -e .` first), not as kernels")
