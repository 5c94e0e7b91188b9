"""Eager fallbacks of the ops, in PyTorch and NumPy: for devices, and inputs, that no kernel is registered for."""
