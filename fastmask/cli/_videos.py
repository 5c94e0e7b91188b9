"""Videos, cameras and streams of ``fastmask predict``."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.cli._messages import is_given, print_line

if TYPE_CHECKING:
    from fastmask.inference import PredictedVideo
    from fastmask.inference.predict_video import FrameResults


def split_sources(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Images and folders, and videos."""
    from fastmask.inference.video_files import is_video

    videos = [source for source in sources if is_video(source)]
    return [Path(source) for source in sources if source not in videos], list(dict.fromkeys(videos))


def check_videos(args: argparse.Namespace, images: Sequence[Path], videos: Sequence[str], world_size: int) -> None:
    """Raise an error for what is wrong already before a model is loaded."""
    from fastmask.inference.video_files import check_lines, name_videos
    from fastmask.inference.video_reader import import_av, locate
    from fastmask.inference.video_writer import check_outputs

    if not videos:
        if args.every != 1:
            raise ValueError(f"--every must be given with videos, got --every {args.every} with images")
        return
    if world_size > 1:
        raise ValueError(f"videos must be predicted by one process, got {world_size}: images alone are shared by ranks")
    if args.save_crops:
        raise ValueError(f"--save-crops must be given with images alone, got the video {videos[0]}")
    if args.format != "auto" and not images:
        raise ValueError(f"--format must be given with images, got {args.format} with the video {videos[0]}")
    if args.json is not None and images:
        raise ValueError(f"--json must be given with images or with videos, got {images[0]} and {videos[0]}")
    try:
        import_av(videos[0])
    except ImportError as error:
        raise ValueError(str(error)) from error
    missing = []
    for video in videos:
        try:
            locate(video)
        except FileNotFoundError as error:
            missing.append(error)
    if len(missing) == len(videos) and not images:
        raise missing[0]
    for video, name in zip(videos, name_videos(videos, args.out), strict=True):
        check_outputs(args.out / name, video, not args.no_overlays)
    if args.json not in (None, "-"):
        check_lines(Path(args.json))


def predict_videos(
    args: argparse.Namespace,
    videos: Sequence[str],
    predictor: Any,
    categories: Sequence[str] | None,
    print_message: Callable[[str], None],
) -> bool:
    """Predict videos one after the other -> whether all of them could be read to their end.

    Raises:
        KeyboardInterrupt: of one of them, whose files are complete up to there.
        ValueError: an argument is wrong.
    """
    from fastmask.checks import ArgumentError
    from fastmask.inference import predict_video
    from fastmask.inference.video_files import name_videos

    options = {"categories": categories, "classes": args.classes, "overlays": not args.no_overlays, "every": args.every}
    options |= {"color_by": args.color_by if is_given(args.color_by) else "class"}
    options |= {"progress": False if args.quiet else None}
    options |= {} if args.quiet else {"on_note": print_message}
    options |= {"on_frame": print_frame} if args.json == "-" else {}
    whole, predicted = True, []
    for video, name in zip(videos, name_videos(videos, args.out), strict=True):
        try:
            outcome = predict_video(predictor, video, args.out, name=name, **options)
        except ArgumentError:
            raise
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            text = str(error) or type(error).__name__
            print_message(f"skipped: {text if video in text else f'{video}: {text}'}")
            whole = False
            continue
        for fault in outcome.faults:
            print_message(fault)
            whole = False
        predicted.append(outcome)
        if not args.quiet:
            print_line(str(outcome), sys.stderr if args.json == "-" else sys.stdout)
    if args.json not in (None, "-"):
        copy_lines(predicted, Path(args.json))
    return whole


def print_frame(results: "FrameResults") -> None:
    """Print a frame's line at once."""
    print(json.dumps(results), flush=True)


def copy_lines(videos: "Sequence[PredictedVideo]", target: Path) -> None:
    """Write the lines of all videos to one file."""
    from fastmask.files import replace_file

    if not videos:
        return
    with replace_file(target) as draft, open(draft, "wb") as file:
        for video in videos:
            with open(video.lines, "rb") as lines:
                shutil.copyfileobj(lines, file)
