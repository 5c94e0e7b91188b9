"""Triton kernels with their launchers, one subject a file; launch.py says where they are used."""
