"""``python -m fastmask``: the same command as ``fastmask``, for launchers such as torchrun."""

from fastmask.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
