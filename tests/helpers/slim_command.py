"""``fastmask`` with ``--model slim``, as a program of its own: what torchrun starts in tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # where helpers/ lies

import fastmask
from fastmask.cli import main
from fastmask.models import _api
from helpers.slim import builder

if __name__ == "__main__":
    _api._BUILDERS["slim"] = builder()
    _api._WEIGHTS["slim"] = fastmask.models.detection.MaskRCNN_ResNet50_FPN_Weights
    raise SystemExit(main())
