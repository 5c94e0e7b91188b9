"""Prefetching: images of any kind become [C, h, w] tensors in batches, read ahead in threads."""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastmask.image_io import read_image, to_upright

ImageLike = Tensor | NDArray[Any] | Image.Image | str | os.PathLike[str]
THREADS = 4


def check_is_list(images: object) -> None:
    """Raise a ValueError for one image; an array of several, [N, h, w, C] or [N] objects, is a list of them."""
    one = isinstance(images, Tensor | np.ndarray) and images.ndim in (0, 2, 3)
    if one or isinstance(images, str | os.PathLike | Image.Image):
        raise ValueError(f"images must be a list of images, got one {type(images).__name__}")


def prefetch_batches(
    images: Iterable[ImageLike],
    size: int,
    kind: Callable[[tuple[int, int]], Hashable],
    ahead: int,
    pin: bool,
    unchanged: bool = False,
    channels: int = 3,
) -> Generator[list[Tensor] | Exception, None, None]:
    """Yield batches of ``size`` images [C, h, w], fewer where the next one's (height, width) is of another kind.

    An image that cannot be read is replaced by its error; an error of ``images`` itself is raised when it is due.

    Args:
        images: images of any kind; ``ahead`` batches of them are asked for before they are needed.
        size: number of images of a batch.
        kind: computes what all images of a batch have in common, from (height, width); its error counts as the image's.
        ahead: number of batches to read ahead; 0 reads each image when it is due.
        pin: return pinned memory.
        unchanged: nobody changes the tensors and arrays before all batches are done with: they are not copied.
        channels: C, of all images; see :func:`to_planes`.
    """
    with contextlib.ExitStack() as stack:
        threads = ThreadPoolExecutor(THREADS)
        stack.callback(threads.shutdown, cancel_futures=True)  # what is read ahead is not waited for
        submitted = _submit(images, threads, pin, unchanged, channels)
        queue = collections.deque(itertools.islice(submitted, size * ahead))
        chunk: list[Tensor] = []
        before: Hashable = None
        ended: Exception | None = None  # what the source ended with
        while True:
            if len(queue) < max(size * ahead, 1):
                queue.extend(itertools.islice(submitted, 1))
            if not queue:
                break
            item = queue.popleft()
            if isinstance(item, Exception):
                ended = item
                break
            image, group = _await(item, kind)
            if chunk and group != before:
                yield chunk
                chunk = []
            if isinstance(image, Exception):
                yield image
                continue
            chunk.append(image)
            before = group
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        if ended is not None:
            raise ended


def _await(image: Future[Tensor], kind: Callable[[tuple[int, int]], Hashable]) -> tuple[Tensor | Exception, Hashable]:
    """Return an image and its kind; where either fails, the error in place of both, which equals no other kind."""
    try:
        planes = image.result()
        return planes, kind((planes.shape[1], planes.shape[2]))
    except Exception as error:
        return error, error


def _submit(
    images: Iterable[ImageLike], threads: ThreadPoolExecutor, pin: bool, unchanged: bool, channels: int
) -> Iterator[Future[Tensor] | Exception]:
    """Yield images that are being read; last, perhaps, an error of their source."""
    source = enumerate(images)
    while True:
        try:
            number, tensor = next(source)
        except StopIteration:
            return
        except Exception as error:
            yield error
            return
        future: Future[Tensor] = Future()
        try:  # copied in the caller's thread, who may use its memory again
            kept = unchanged and isinstance(tensor, Tensor | np.ndarray)
            image = tensor if kept else copy_image(tensor, number, pin, channels)
            image = image.detach() if isinstance(image, Tensor) else image
            if isinstance(image, Tensor) and (not pin or image.device.type != "cpu" or image.is_pinned()):
                future.set_result(to_planes(image, number, channels=channels))  # a thread would take longer to begin
            else:
                future = threads.submit(to_planes, image, number, pin, channels)
        except Exception as error:
            future.set_exception(error)
        yield future


def copy_image(image: ImageLike, number: int, pin: bool = False, channels: int = 3) -> ImageLike:
    """Copy an image that its owner may change next; Pillow's are decoded, as they are not for several threads at once.

    With ``pin`` the copy is pinned at once: PyTorch caches pinned memory, while pageable memory costs as much to
    allocate as to copy.
    """
    if isinstance(image, Tensor):
        pinned = pin and image.device.type == "cpu"
        return torch.empty_like(image.detach(), pin_memory=pinned).copy_(image.detach())
    if isinstance(image, np.ndarray):
        if not pin:
            return image.copy()
        copy: NDArray[Any] = empty_pinned(image).numpy()
        np.copyto(copy, image)
        return copy
    if isinstance(image, Image.Image):
        try:
            return np.array(to_upright(image, channels))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a torn file that was opened only
            raise ValueError(f"images[{number}] cannot be read: {error}") from error
    return image


def empty_pinned(image: NDArray[Any]) -> Tensor:
    """Allocate pinned memory of an array's shape and dtype; raise ``torch.from_numpy``'s error if PyTorch lacks it."""
    dtype = torch.from_numpy(np.empty(0, image.dtype)).dtype
    return torch.empty(image.shape, dtype=dtype, pin_memory=True)


def to_planes(image: ImageLike, number: int, pin: bool = False, channels: int = 3) -> Tensor:
    """Convert an image of any kind to [C, h, w], uint8 or floating; an error names it by ``number``.

    Files and PIL images become grayscale or RGB where ``channels`` is 1 or 3. All other images must have as many.
    """
    if isinstance(image, str | os.PathLike):
        image = read_image(image, channels)
    if isinstance(image, Image.Image):
        image = np.array(image)
    rows_first = isinstance(image, np.ndarray)
    planes = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if not isinstance(planes, Tensor):
        raise ValueError(
            f"images[{number}] must be a path, a PIL image, a tensor or an array, got {type(image).__name__}"
        )
    if planes.ndim == 2 and channels == 1:
        planes, rows_first = planes[None], False
    if planes.ndim != 3 or channels not in (planes.shape[0], planes.shape[2]):
        shapes = f"{'[H, W], ' if channels == 1 else ''}[{channels}, H, W] or [H, W, {channels}]"
        raise ValueError(f"images[{number}] must be {shapes}, got {tuple(planes.shape)}")
    if planes.dtype != torch.uint8 and not planes.is_floating_point():
        raise ValueError(f"images[{number}] must be uint8 or floating point, got {planes.dtype}")
    if planes.shape[2] == channels and (rows_first or planes.shape[0] != channels):
        planes = planes.permute(2, 0, 1)
    if planes.numel() == 0:
        raise ValueError(f"images[{number}] must have pixels, got {tuple(planes.shape)}")
    return planes.pin_memory() if pin and planes.device.type == "cpu" else planes
