"""Triton kernels with their launchers and the variants that audit.py compiles, one subject a file."""
