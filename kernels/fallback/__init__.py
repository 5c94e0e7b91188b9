"""The fast plain-PyTorch and NumPy paths, used wherever no kernel is registered for a device."""
