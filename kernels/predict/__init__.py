"""``python -m fastmask.kernels.predict``: predicted GPU time of each op, computed without a GPU; see ../README.md.

Predictions are not measurements. Trip counts of the kernels' loops are counted on the benchmarks' inputs (one file an
op); instructions, registers and shared memory come from the machine code that Triton makes for sm_90 of the launch that
the launcher really does (record.py); machine.py holds what is assumed of the GPU.

Adding a kernel: a file with ``CASES``, in which each case builds the launcher's call and the ``Work`` of its launches;
a loop that is not described is an error that names it. Then the module goes into ``table.MODULES``.
"""
