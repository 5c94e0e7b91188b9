"""Predictor: a model prepared once for fast inference on images of any kind and size."""

import collections
import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.checks import check_at_least, check_choice
from fastmask.inference import arguments
from fastmask.inference.prefetch import ImageLike, check_is_list, prefetch_batches
from fastmask.inference.pretrained import FilePath, load_with_metadata
from fastmask.inference.program import Program, Runner
from fastmask.inference.tta import TTAProgram, TTARunner, make_resizers
from fastmask.inference.unpack import Pending, drop_tracebacks, explain_out_of_memory, unpack
from fastmask.kernels.launch import is_capturable
from fastmask.kernels.preprocess import preprocess_op
from fastmask.kernels.tuning import tuned_value_at
from fastmask.models.detection._channels import count_channels
from fastmask.models.detection._roi_stages import BOX_NMS, BoxNms
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.prepare import FUSE_MODES, CachedAnchors, Fuse, choose_fuse, prepare_for_inference
from fastmask.sizes import Size
from fastmask.skeletons import Skeleton
from fastmask.structures import Prediction

MASKS = ("rle", "bool", "packed", "soft", "float")
BYTES_PER_MASK = 2048  # of RLE; a batch that needs more is encoded once more, outside the program
BUCKETS = (8, 16, 32, 64)  # of detections, see mask_buckets; then all of them


class Predictor:
    """Predicts the objects in images, with a model that is copied and prepared once.

    The copy has its norms folded, is channels last and of ``dtype``. Images are resized, normalized and padded on its
    device; then, on CUDA, one graph replay does everything up to boxes and masks, and one copy brings the predictions
    to the host. On other devices the same program is called.

    Args:
        model: any of ``fastmask.models.detection``; it is not changed.
        size: (height, width) that images are padded to, transposed for portrait images; an image is resized as the
            model would, but no larger than fits. "exact" pads as the model does, which captures a graph for each size.
        batch: images of a batch; a batch ends early where portrait images follow landscape ones. With "exact" it is
            padded together, as the model pads a list of that many.
        dtype: of weights and feature maps; all but labels is float32 at least. "auto": bfloat16 on CUDA, else the
            model's own; :func:`fastmask.evaluation.choose_dtype` asks your images whether bfloat16 will do on a CPU.
        masks: "rle": COCO's, as :func:`fastmask.ops.encode_masks`; "bool" or "packed": as
            :func:`fastmask.ops.paste_masks`; "float": torchvision's pasted probabilities [n, 1, h, w]; "soft":
            probabilities [n, 1, 28, 28] over the boxes (14 x 14 of a C4 model).
        threshold: probability above which a pixel belongs to a mask.
        detections: maximum number of detections of an image; None: as many as the model keeps.
        mask_buckets: wait for the number of detections, then predict masks for 8, 16, 32, 64 or all of them, instead of
            for all in any case without a host sync. On CUDA each shape is then captured as six graphs, and keeps its
            feature maps. None: what ``fastmask tune`` found faster on this GPU, for this size, batch and dtype, or
            else False.
        graphs: number of captured shapes that are kept; the least recently used one is evicted first.
        fuse: how bias, ReLU and residuals join their convolutions. "kernel": 1x1 convolutions become matrix products,
            which add bias and ReLU as they write, and one kernel follows any other. "cudnn" (NVIDIA alone): the same,
            and where cuDNN has a fused convolution, that. "mkldnn" (CPUs, float32 and bfloat16): oneDNN's fused
            convolutions and matrix products. "off": each is a pass of its own. "auto": on a GPU what ``fastmask tune``
            found there, or else "cudnn" (on AMD's "kernel"); on x86 CPUs "mkldnn" without ``compile``; else "off".
        compile: let ``torch.compile`` fuse what is left, once for each shape, which takes a minute.
        box_nms: "hard", "soft_linear" or "soft_gaussian" (see :class:`FasterRCNN`); None: as the model.
        flip_test: predict each image mirrored, too, and merge both by NMS; masks are averaged (test-time augmentation,
            detectron2's TEST.AUG.FLIP). Not with a keypoint branch.
        test_sizes: shorter sides that each image is resized to, instead of the model's min_size, merged alike
            (detectron2's TEST.AUG.MIN_SIZES); max_size and ``size`` grow and shrink with them.

    Raises:
        ValueError: an argument does not fit, or a weight is NaN or infinite.

    A Predictor is safe to use from several threads, which take turns. While a new shape is captured, a
    ``torch.cuda.synchronize()`` of another thread breaks the capture (CUDA's rule).
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        size: tuple[int, int] | Literal["exact"] = (800, 1344),
        batch: int = 1,
        dtype: torch.dtype | Literal["auto"] = "auto",
        masks: str = "rle",
        *,
        threshold: float = 0.5,
        detections: int | None = None,
        mask_buckets: bool | None = None,
        graphs: int = 8,
        fuse: Fuse | Literal["auto"] = "auto",
        compile: bool = False,
        box_nms: BoxNms | None = None,
        flip_test: bool = False,
        test_sizes: Sequence[int] | None = None,
    ) -> None:
        for name, choice, choices in (("masks", masks, MASKS), ("fuse", fuse, ("auto", *FUSE_MODES))):
            check_choice(name, choice, choices)
        check_choice("box_nms", box_nms or "hard", BOX_NMS)
        for name, number in (("batch", batch), ("graphs", graphs)):
            arguments.check_number(name, number)
        arguments.check_model(model)
        self.device = next(model.parameters()).device
        dtype, detections = arguments.choose_dtype(model, dtype), arguments.choose_detections(model, detections)
        padded = arguments.parse_size(size)
        apart = {"mask_buckets": mask_buckets, "compile": compile}
        self.augmented = arguments.check_views(model, flip_test, test_sizes, apart)
        self.batch, self.dtype, self.masks, self.threshold, self.graphs = batch, dtype, masks, threshold, graphs
        self.channels = count_channels(model)
        usual: Fuse = choose_fuse(self.device, dtype, compile)
        arguments.check_fuse(fuse, compile)
        asked = tuned_value_at("predictor.fuse", usual, self.device, size, batch, dtype) if fuse == "auto" else fuse
        self.fuse, self.compile = asked, compile
        ready = prepare_for_inference(model, dtype, self.fuse)
        ready.roi_heads.detections_per_img = detections
        ready.roi_heads.box_nms = self.box_nms = ready.roi_heads.box_nms if box_nms is None else box_nms
        if mask_buckets is None and not self.augmented:
            mask_buckets = tuned_value_at("predictor.mask_buckets", False, self.device, size, batch, dtype)
        wanted = mask_buckets and (ready.roi_heads.has_mask() or ready.roi_heads.has_keypoint())
        self._buckets = (*(rows for rows in BUCKETS if rows < detections), detections) if wanted else None
        self.resizers = make_resizers(ready.transform, padded, test_sizes)
        self.size: Size | Literal["exact"] = self.resizers[0].padded_size or "exact"
        assert isinstance(ready.rpn.anchor_generator, CachedAnchors)
        self.anchors: CachedAnchors = ready.rpn.anchor_generator
        self._mean, self._std = (
            torch.as_tensor(values, dtype=torch.get_default_dtype(), device=self.device).expand(self.channels)
            for values in (ready.transform.image_mean, ready.transform.image_std)
        )
        trim = self.device.type == "cpu"
        kind = functools.partial(TTAProgram, flip=flip_test) if self.augmented else Program
        self.program: Program = kind(ready, masks, threshold, BYTES_PER_MASK, trim=trim)
        self._runners: collections.OrderedDict[tuple[Size, ...], Runner | TTARunner] = collections.OrderedDict()
        on_cuda = self.device.type == "cuda"
        self._capture = torch.cuda.Stream(self.device) if on_cuda and is_capturable() else None
        self._uploads = torch.cuda.Stream(self.device) if on_cuda else None
        self._pool: Any = None
        self._last: torch.cuda.Event | None = None  # of the batch launched last
        self._lock = threading.Lock()

    def __call__(self, images: Sequence[ImageLike] | Tensor | NDArray[Any]) -> list[Prediction]:
        """Predict the objects in a list of images.

        Args:
            images: images of any sizes, each one a path, a PIL image, or a tensor or array [C, h, w] or [h, w, C],
                uint8 or float in [0, 1]. ([3, h, 3] is read as the former from a tensor, as the latter from an array.)
                C is the model's number of channels, 3 as a rule; of one channel, [h, w] will do. Also all images of
                one shape as one tensor or array, [N, C, h, w] or [N, h, w, C], and an array [N] of objects.

        Returns:
            One :class:`fastmask.structures.Prediction` an image, in order: boxes [n, 4] in its pixels, labels [n] and
            scores [n], best first, on the host; pasted masks stay on the model's device, others are on the host.

        Raises:
            ValueError: an image is broken, has no pixels, or is of no such shape or number of channels.
            RuntimeError: an image is too large for the device's memory.
        """
        check_is_list(images)
        unchanged = isinstance(images, list | tuple | Tensor | np.ndarray)  # nobody changes these during this call
        return list(self._stream(images, False, None, 2, True, unchanged))

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        progress: bool = ...,
        total: int | None = ...,
        ahead: int = ...,
        errors: Literal["raise"] = ...,
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        progress: bool = ...,
        total: int | None = ...,
        ahead: int = ...,
        errors: Literal["yield"],
    ) -> Iterator[Prediction | Exception]: ...

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        progress: bool = True,
        total: int | None = None,
        ahead: int = 2,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Any]:
        """Predict any number of images, as :meth:`__call__`, and yield their predictions in order.

        While the device works on a batch, threads read the next one, and it is queued behind it.

        Args:
            images: an iterable of images, or an array of them; it may be endless.
            progress: show a progress bar.
            total: number of images for the progress bar, where ``images`` has no length.
            ahead: number of batches to prefetch. With 0 an image's prediction is yielded before the next image is asked
                for, as a camera needs it.
            errors: "raise" the first one, after the predictions before it; or "yield" it in its image's place and go
                on. An error of ``images`` itself is always raised.
        """
        check_is_list(images)
        check_at_least("ahead", ahead, 0)
        check_choice("errors", errors, ("raise", "yield"))
        if total is None and isinstance(images, Sized):
            total = len(images)
        return self._stream(images, progress, total, ahead, errors == "raise")

    def _stream(
        self,
        images: Iterable[ImageLike],
        progress: bool,
        total: int | None,
        ahead: int,
        raising: bool,
        unchanged: bool = False,
    ) -> Iterator[Any]:
        from tqdm import tqdm

        pending: list[Pending | Exception] = []
        pin = self.device.type == "cuda"
        choose, channels = self.resizers[0].choose_padded_size, self.channels
        chunks = prefetch_batches(images, self.batch, choose, ahead, pin, unchanged, channels)
        with tqdm(total=total, unit="img", disable=not progress) as bar, contextlib.closing(chunks):
            ended, failure = False, None
            while not ended:
                launched: list[Pending | Exception] = []
                try:
                    chunk = next(chunks, None)
                except Exception as error:  # of the images' source: after the predictions that are there
                    chunk, failure = None, error
                if chunk is None:
                    ended = True
                else:
                    launched = [chunk] if isinstance(chunk, Exception) else self._start(chunk)
                for result in self._unpack(pending if ahead else launched):
                    if isinstance(result, Exception):
                        if raising:
                            raise result
                        drop_tracebacks(result)
                    bar.update()
                    yield result
                pending = launched
            if failure is not None:
                raise failure

    def _start(self, chunk: list[Tensor]) -> list[Pending | Exception]:
        """Launch a batch; where that fails, its images one by one, with the errors of those that fail alone."""
        try:
            return [self._launch(chunk)]
        except Exception as error:
            if len(chunk) == 1:
                return [error]
        return [launched for image in chunk for launched in self._start([image])]

    def _unpack(self, launched: Iterable[Pending | Exception]) -> Iterator[Prediction | Exception]:
        for pending in launched:
            if isinstance(pending, Exception):
                yield pending
            else:
                yield from unpack(pending, self.masks, self.threshold)

    @torch.inference_mode()
    def _launch(self, chunk: list[Tensor]) -> Pending:
        """Put a batch on the device and start the program and the copy of its outputs to the host."""
        originals = [(image.shape[1], image.shape[2]) for image in chunk]
        with self._lock, _on(self.device), torch.autocast(self.device.type, enabled=False):
            resized = [resizer.resize_batch(originals) for resizer in self.resizers]
            sizes = tuple(size for _, size in resized)
            if self._last is not None:  # launched on another thread's stream, it may still be reading its outputs
                torch.cuda.current_stream().wait_event(self._last)
            area = sum(height * width for height, width in sizes)
            wanted = self.program.pixel_stride * self.batch * area * self.dtype.itemsize
            shown = ", ".join(map(str, sizes))
            with explain_out_of_memory(f"images of {originals}", f"the padded pixels {shown}", wanted):
                runner = self._runner(sizes)
                uploaded = [self._upload(image) for image in chunk]
                for (shapes, _), buffers in zip(resized, runner.buffers, strict=True):
                    heights, widths = map(list, zip(*shapes, strict=True))
                    preprocess_op(uploaded, heights, widths, self._mean, self._std, buffers.inputs.pixels)
                    buffers.write_sizes(shapes, originals)
                packed = runner.run()
            masks = None if self.masks == "soft" else packed.masks
            if self.device.type != "cuda":
                return Pending(packed.data, packed.fields, masks, originals, None)
            try:
                data = torch.empty(packed.data.shape, dtype=torch.uint8, pin_memory=True)
                data.copy_(packed.data, non_blocking=True)
                masks = None if masks is None else masks.clone()
            finally:  # the graph runs, whatever fails here
                done = self._last = torch.cuda.Event()
                done.record()
            return Pending(data, packed.fields, masks, originals, done)

    def _upload(self, image: Tensor) -> Tensor:
        """Copy an image to the device over a stream of its own, without waiting for what the device is doing."""
        if self._uploads is None or image.device == self.device:
            return image.to(self.device)
        with torch.cuda.stream(self._uploads):
            uploaded = image.to(self.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._uploads)
        uploaded.record_stream(torch.cuda.current_stream())
        return uploaded

    def _runner(self, sizes: tuple[Size, ...]) -> Runner | TTARunner:
        """Return the program on padded sizes, one for each test size, built at its first use."""
        if sizes not in self._runners:
            while len(self._runners) >= self.graphs:
                if self._last is not None:
                    self._last.synchronize()  # what is dropped may be running
                dropped, _ = self._runners.popitem(last=False)
                for size in set(dropped).difference(*self._runners):
                    self.anchors.evict(size)
            if not self._runners and self._capture is not None:
                self._pool = torch.cuda.graph_pool_handle()  # one whose last graph is gone is gone too
            where = (self.dtype, self.device, self._pool, self._capture)
            if isinstance(self.program, TTAProgram):
                self._runners[sizes] = TTARunner(self.program, self.batch, sizes, *where)
            else:
                self._runners[sizes] = Runner(self.program, self.batch, sizes[0], *where, self._buckets, self.compile)
        self._runners.move_to_end(sizes)
        return self._runners[sizes]

    categories: Sequence[str] | None = None  # names by label, from 0, the background, where they are known
    skeletons: Mapping[str, Skeleton] = {}  # of keypoints, by category, where they are known

    @classmethod
    def from_pretrained(
        cls,
        name: FilePath | None,
        weights: FilePath = "DEFAULT",
        *,
        device: str = "auto",
        score: float = 0.05,
        **options: Any,
    ) -> "Predictor":
        """A detector by name with weights, or a file's; see :func:`load_pretrained`. ``options`` as above."""
        model, meta = load_with_metadata(name, weights, device, score)
        predictor = cls(model, **options)
        predictor.categories, predictor.skeletons = meta.get("categories"), meta.get("skeletons", {})
        return predictor


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
