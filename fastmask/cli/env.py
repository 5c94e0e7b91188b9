"""``fastmask env``: versions and devices, for a bug report."""

import argparse
import importlib.metadata
import platform

PACKAGES = ("fastmask-rcnn", "triton", "torchvision", "numpy", "pycocotools", "onnxruntime", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add none."""


def run(args: argparse.Namespace) -> int:
    """Print versions and devices."""
    import torch  # seconds: only once the command line is known to be right

    from fastmask.kernels.launch import describe
    from fastmask.kernels.tuning import describe_all

    print(f"{'python':14} {platform.python_version()} on {platform.platform()}")
    print(f"{'torch':14} {torch.__version__}")
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{package:14} {version}")
    print(f"{'cpu':14} {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        print(f"{f'cuda:{index}':14} {device.name}, {memory}, sm_{device.major}{device.minor}")
    if not torch.cuda.is_available():
        print(f"{'cuda':14} no device")
    print(f"{'kernels':14} {describe()}")
    for line in describe_all():
        print(f"{'tuning':14} {line}")
    return 0
