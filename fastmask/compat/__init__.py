"""The reversible patch that runs torchvision on fastmask's kernels."""
