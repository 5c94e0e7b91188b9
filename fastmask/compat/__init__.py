"""A reversible patch that puts fastmask's kernels under torchvision."""
