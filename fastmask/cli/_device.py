"""The device that ``--device`` names."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "mps", "xpu")
DEVICE_HELP = "auto (CUDA where it is available, else cpu), cpu, cuda, cuda:1, ... [%(default)s]"


def find_device(name: str) -> "torch.device":
    """The device of a name of torch's; "auto" is CUDA where it is available, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch  # seconds: not before the command line is known to be right

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"known are {', '.join(DEVICES)}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
        reason = str(error).partition("\n")[0].partition(". ")[0][:200]
        raise ValueError(f"--device must be one that this machine has, got {name!r} ({reason})") from error
    return device
