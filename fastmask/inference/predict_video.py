"""Predictions of a video's frames as JSON Lines and as an overlaid video, in bounded memory."""

import collections
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.checks import check_at_least, check_choice
from fastmask.files import replace_file
from fastmask.fonts import choose_names
from fastmask.inference.choose_classes import find_labels, keep_labels
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.image_files import VIDEO_OVERLAY_SUFFIX
from fastmask.inference.predict_files import Drawing, label_skeletons
from fastmask.inference.video_files import LINES_SUFFIX, Source, name_videos, open_lines
from fastmask.inference.video_reader import Frame, VideoReader, is_transposed, to_pixels
from fastmask.inference.video_writer import VideoWriter, check_outputs
from fastmask.structures import CocoResult, Prediction
from fastmask.visualize import draw_detections

THREADS = 2
WAITING = 4  # frames that are being drawn or encoded, at most
Pixels = NDArray[np.uint8]


class StreamingPredictor(Protocol):
    """:class:`fastmask.Predictor`, or :class:`fastmask.export.ExportedPredictor`; with masks as RLE."""

    def stream(self, images: Iterator[Pixels], *, progress: bool, ahead: int) -> Iterator[Prediction]: ...


class FrameResults(TypedDict):
    """A line of the JSON Lines file."""

    file_name: str  # of the video, as it was given
    frame: int  # from 0
    time: float  # seconds since the video's start
    detections: list[CocoResult]  # whose image_id is the frame's number


class PredictedVideo(NamedTuple):
    """Outcome of :func:`predict_video`."""

    source: str
    frames: int  # with predictions
    detections: int
    seconds: float  # that it took
    lines: Path  # the JSON Lines file
    overlay: Path | None  # the overlaid video
    faults: list[str]  # what of the video could not be read

    def __str__(self) -> str:
        frames = f"{self.frames} frames" if self.frames != 1 else "1 frame"
        files = ", ".join(str(path) for path in (self.overlay, self.lines) if path)
        speed = f"{self.frames / self.seconds:.3g}/s"
        return f"{self.detections} detections in {frames} of {self.source} ({speed}): {files}"


def predict_video(
    predictor: StreamingPredictor,
    source: Source,
    folder: str | os.PathLike[str] = "predictions",
    *,
    name: str | None = None,
    categories: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    overlays: bool = True,
    color_by: Literal["instance", "class"] = "class",
    every: int = 1,
    progress: bool | None = None,
    on_note: Callable[[str], object] = lambda note: None,
    on_frame: Callable[[FrameResults], object] = lambda results: None,
) -> PredictedVideo:
    """Detect objects in the frames of a video; write ``NAME.predictions.jsonl`` and ``NAME.predicted.mp4`` to a folder.

    Frames are read, predicted, drawn and encoded in order and at once, a few at a time. The JSON Lines are written as
    they come, to ``NAME.predictions.partial.jsonl``; both files have their names when the video has ended. An interrupt
    (Ctrl-C) ends the video there: its files are completed, then KeyboardInterrupt is raised, which tells how many
    frames they have. After any other error the partial lines are left, and an overlaid video is not.

    Frames are upright, by the video's rotation; times count from its start. The overlaid video (H.264 in MP4) has the
    frames' size and times, and a copy of the audio. A camera's frames for which there is no time are left out.

    Args:
        predictor: a :class:`fastmask.Predictor` or :class:`fastmask.export.ExportedPredictor`, with masks as RLE.
        source: a video file; a camera, ``camera:0`` or ``/dev/video0``; or an address, such as ``rtsp://...``.
        folder: of the output; created if it does not exist.
        name: of the output files, without ending; None: the source's.
        categories: names by label, from 0, the background; None: the predictor's, if it has any.
        classes: names of the categories whose detections are kept; None: all.
        overlays: also write the overlaid video.
        color_by: give each class a color of its own, or each instance of a frame, by its score: instances are not
            tracked from frame to frame.
        every: predict the first frame of every so many; the overlaid video has these frames only.
        progress: show a bar; None: where the standard error is a terminal.
        on_note: called with what is to be known of the video, such as audio that is left out.
        on_frame: called with each frame's results, in order, as soon as they are written.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: there is no such file or camera.
        FileExistsError: an output file is there, and is not of an earlier run.
        ValueError: the source is no video, has no frame that can be decoded, is the output, or another run writes it;
            or a class is none of the predictor's.
    """
    check_choice("color_by", color_by, ("instance", "class"))
    check_at_least("every", every, 1)
    categories = getattr(predictor, "categories", None) if categories is None else categories
    labels = None if classes is None else find_labels(classes, categories)
    names, legend = choose_names(tuple(categories)) if overlays and categories is not None else (categories, "")
    if legend:
        on_note(legend)
    folder = Path(folder)
    base = folder / (name_videos([source], folder)[0] if name is None else name)
    overlay = Path(f"{base}{VIDEO_OVERLAY_SUFFIX}") if overlays else None
    check_outputs(base, source, overlays)
    start = time.perf_counter()
    with VideoReader(source, overlays) as reader, contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        lines = stack.enter_context(open_lines(base))
        draft = stack.enter_context(open_draft(overlay, reader)) if overlay else None
        drawing = Drawing(labels, names, color_by, label_skeletons(predictor, categories))
        run = Run(reader, drawing, lines, draft, every, on_frame)
        interrupted = run.predict(predictor, sys.stderr.isatty() if progress is None else progress)
        if not run.frames:
            os.unlink(lines.name)
            if interrupted:
                raise KeyboardInterrupt(f"interrupted before the first frame of {source}")
            raise ValueError("; ".join([f"{source} must have a frame that can be decoded, got none", *reader.faults]))
        if draft is not None:
            draft.finish([] if interrupted else run.packets)
        lines.close()
        os.replace(lines.name, f"{base}{LINES_SUFFIX}")
    for note in run.list_notes():
        on_note(f"{source} {note}")
    seconds = time.perf_counter() - start
    faults = [] if interrupted else [f"{source}: {fault}" for fault in reader.faults]
    outcome = PredictedVideo(
        os.fspath(source), run.frames, run.detections, seconds, Path(f"{base}{LINES_SUFFIX}"), overlay, faults
    )
    if interrupted:
        raise KeyboardInterrupt(f"interrupted: {outcome}")
    return outcome


class Draft:
    """The overlaid video while it is written; its size is that of the first frame."""

    def __init__(self, path: Path, reader: VideoReader) -> None:
        self.path, self.reader = path, reader
        self.writer: VideoWriter | None = None
        self.size = (0, 0)
        self.resized = 0

    def write(self, image: Image.Image, frame: Frame, transposed: bool) -> None:
        if self.writer is None:
            self.size = image.size
            reader, aspect = self.reader, self.reader.stream.codec_context.sample_aspect_ratio
            aspect = 1 / aspect if aspect and transposed else aspect
            shape = (image.height, image.width)
            self.writer = VideoWriter(self.path, shape, reader.time_base, reader.rate, aspect, reader.audio)
        if image.size != self.size:
            self.resized += 1
            image = image.resize(self.size)
        self.writer.write(np.asarray(image), frame.ticks, frame.packets)

    def finish(self, packets: Sequence[Any]) -> None:
        """Complete the file, with the audio that comes after the last frame."""
        assert self.writer is not None
        self.writer.finish(packets)


@contextlib.contextmanager
def open_draft(path: Path, reader: VideoReader) -> Iterator[Draft]:
    """An overlaid video that gets its name at the end; where anything fails, nothing of it is left."""
    with replace_file(path) as file:
        draft = Draft(file, reader)
        try:
            yield draft
        except BaseException:
            if draft.writer is not None:
                draft.writer.close()
            raise


class Run:
    """Frames on their way from a video to its files.

    The caller's thread reads and predicts them, two draw, and one encodes them in order: an interrupt, which only the
    caller's thread sees, leaves no frame half written.
    """

    def __init__(
        self,
        reader: VideoReader,
        drawing: Drawing,
        lines: IO[str],
        draft: Draft | None,
        every: int,
        on_frame: Callable[[FrameResults], object],
    ) -> None:
        self.reader, self.drawing, self.lines, self.draft = reader, drawing, lines, draft
        self.every, self.on_frame = every, on_frame
        self.frames = self.detections = 0
        self.packets: list[Any] = []  # of audio, which no frame has taken yet
        self._transposed = False
        self._writing = False  # stays true after an error: no later frame is written then
        self._predicting: collections.deque[tuple[Frame, Pixels]] = collections.deque()

    def predict(self, predictor: StreamingPredictor, progress: bool) -> bool:
        """Predict and write all frames -> whether an interrupt ended that."""
        from tqdm import tqdm

        total, interrupted = self.reader.total, False
        waiting: collections.deque[Future[FrameResults]] = collections.deque()
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(total=total and -(-total // self.every), unit=" frames", disable=not progress)
            )
            drawers = stack.enter_context(ThreadPoolExecutor(THREADS))
            encoder = stack.enter_context(ThreadPoolExecutor(1))
            predictions = predictor.stream(self._read(), progress=False, ahead=0 if self.reader.live else 2)
            stack.callback(getattr(predictions, "close", lambda: None))
            try:
                for prediction in predictions:
                    frame, pixels = self._predicting.popleft()
                    drawn = drawers.submit(self._draw, frame, pixels, prediction)
                    waiting.append(encoder.submit(self._write, frame, drawn))
                    while len(waiting) > WAITING or (waiting and waiting[0].done()):
                        self._pass_on(waiting, bar)
            except KeyboardInterrupt:
                interrupted = True
            while waiting:
                self._pass_on(waiting, bar)
        return interrupted

    def list_notes(self) -> Iterator[str]:
        """What is to be known of the video, after its name."""
        reader, draft = self.reader, self.draft
        if reader.hdr:
            yield f"has a high dynamic range ({reader.hdr}), which is read as if it had not"
        if reader.skipped:
            yield f"is faster than its predictions: {reader.skipped} frames are left out"
        if reader.guessed:
            yield f"has {reader.guessed} frames without a time, or not after the one before: theirs is guessed"
        if draft is None or draft.writer is None:
            return
        if draft.resized:
            yield f"changes its size: {draft.resized} frames of its overlaid video are resized to that of the first"
        left_out = [f"{name} audio" for name in draft.writer.left_out] + [stream.type for stream in reader.others]
        if left_out:
            yield f"has streams that its overlaid video has not: {', '.join(left_out)}"
        if draft.writer.codec != "libx264":
            yield f"is encoded with {draft.writer.codec}, as this PyAV has no libx264"

    def _read(self) -> Iterator[Pixels]:
        for frame in self.reader:
            self.packets += frame.packets
            if frame.number % self.every:
                continue
            if frame.number == 0:
                self._transposed = is_transposed(frame.image)
            pixels = to_pixels(frame.image)
            self._predicting.append((frame._replace(image=None, packets=self.packets), pixels))
            self.packets = []
            yield pixels
        self.packets += self.reader.rest

    def _draw(self, frame: Frame, pixels: Pixels, prediction: Prediction) -> tuple[list[CocoResult], Image.Image]:
        labels, names, color_by, skeletons = self.drawing
        if labels is not None:
            prediction = keep_labels(prediction, labels)
        image = Image.fromarray(pixels)
        if self.draft is not None:
            colors = prediction["labels"].tolist() if color_by == "class" else None
            image = draw_detections(image, prediction, names, colors, skeletons)
        return to_coco_results(frame.number, prediction), image

    def _write(self, frame: Frame, drawn: Future[tuple[list[CocoResult], Image.Image]]) -> FrameResults:
        if self._writing:
            raise RuntimeError("an earlier frame could not be written")
        self._writing = True
        detections, image = drawn.result()
        if self.draft is not None:
            self.draft.write(image, frame, self._transposed)
        seconds = round(float(frame.ticks * self.reader.time_base), 6)
        results = FrameResults(
            file_name=os.fspath(self.reader.source), frame=frame.number, time=seconds, detections=detections
        )
        self.lines.write(json.dumps(results) + "\n")
        self.lines.flush()
        self.frames += 1
        self.detections += len(detections)
        self._writing = False
        return results

    def _pass_on(self, waiting: "collections.deque[Future[FrameResults]]", bar: Any) -> None:
        """Give the caller the results of the first frame that waits, once they are written."""
        results = waiting[0].result()
        waiting.popleft()
        bar.update()
        self.on_frame(results)
