"""Images of any kind as planes, in batches, read ahead in threads."""

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

from fastmask.image_io import read_image, to_upright_rgb

ImageLike = Tensor | NDArray[Any] | Image.Image | str | os.PathLike[str]
THREADS = 4


def batches(
    images: Iterable[ImageLike],
    size: int,
    kind: Callable[[tuple[int, int]], Hashable],
    ahead: int,
    pin: bool,
    unchanged: bool = False,
) -> Generator[list[Tensor] | Exception, None, None]:
    """Images as [3, h, w], ``size`` at once, fewer where the next one's (height, width) is of another kind.

    In the place of one that cannot be looked at there is its error; one of ``images`` itself is raised when it is due.

    Args:
        images: of which ``ahead`` batches are asked for before they are needed.
        size: images of a batch.
        kind: what all images of a batch have in common; an image of which it raises cannot be looked at.
        ahead: 0 reads each image when it is due.
        pin: in memory that a GPU can fetch from by itself.
        unchanged: nobody changes the tensors and arrays before all batches are done with: they are not copied.
    """
    with contextlib.ExitStack() as stack:
        threads = ThreadPoolExecutor(THREADS)
        stack.callback(threads.shutdown, cancel_futures=True)  # what is read ahead is not waited for
        submitted = _submitted(images, threads, pin, unchanged)
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
            image, own = _looked_at(item, kind)
            if chunk and own != before:
                yield chunk
                chunk = []
            if isinstance(image, Exception):
                yield image
                continue
            chunk.append(image)
            before = own
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        if ended is not None:
            raise ended


def _looked_at(
    image: Future[Tensor], kind: Callable[[tuple[int, int]], Hashable]
) -> tuple[Tensor | Exception, Hashable]:
    """An image and its kind, or the error of either, which is of a kind of its own."""
    try:
        planes = image.result()
        return planes, kind((planes.shape[1], planes.shape[2]))
    except Exception as error:
        return error, error


def _submitted(
    images: Iterable[ImageLike], threads: ThreadPoolExecutor, pin: bool, unchanged: bool
) -> Iterator[Future[Tensor] | Exception]:
    """Images being read; last, perhaps, an error of their source."""
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
        try:  # taken in the caller's thread, who may use its memory again
            kept = unchanged and isinstance(tensor, Tensor | np.ndarray)
            image = tensor if kept else taken(tensor, number, pin)
            image = image.detach() if isinstance(image, Tensor) else image
            if isinstance(image, Tensor) and (not pin or image.device.type != "cpu" or image.is_pinned()):
                future.set_result(to_planes(image, number))  # a thread would take longer to begin
            else:
                future = threads.submit(to_planes, image, number, pin)
        except Exception as error:
            future.set_exception(error)
        yield future


def taken(image: ImageLike, number: int, pin: bool = False) -> ImageLike:
    """An image that stays as it is, whatever its owner does next; Pillow's are not for several threads at once.

    With ``pin`` the copy is at once where a GPU can fetch it from: PyTorch keeps such memory, while memory of the
    system's own costs as much to get as to copy.
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
            return np.array(to_upright_rgb(image))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a torn file that was opened only
            raise ValueError(f"images[{number}] cannot be looked at: {error}") from error
    return image


def empty_pinned(image: NDArray[Any]) -> Tensor:
    """Of an array's shape and dtype, if PyTorch has that dtype; else it raises what ``torch.from_numpy`` does."""
    dtype = torch.from_numpy(np.empty(0, image.dtype)).dtype
    return torch.empty(image.shape, dtype=dtype, pin_memory=True)


def to_planes(image: ImageLike, number: int, pin: bool = False) -> Tensor:
    """An image of any kind -> [3, h, w], uint8 or floating; ``number`` is what an error calls it."""
    if isinstance(image, str | os.PathLike):
        image = read_image(image)
    if isinstance(image, Image.Image):
        image = np.array(image)
    rows_first = isinstance(image, np.ndarray)
    planes = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if not isinstance(planes, Tensor):
        raise ValueError(
            f"images[{number}] must be a path, a PIL image, a tensor or an array, got {type(image).__name__}"
        )
    if planes.ndim != 3 or 3 not in (planes.shape[0], planes.shape[2]):
        raise ValueError(f"images[{number}] must be [3, H, W] or [H, W, 3], got {tuple(planes.shape)}")
    if planes.dtype != torch.uint8 and not planes.is_floating_point():
        raise ValueError(f"images[{number}] must be uint8 or floating point, got {planes.dtype}")
    if planes.shape[2] == 3 and (rows_first or planes.shape[0] != 3):
        planes = planes.permute(2, 0, 1)
    if planes.numel() == 0:
        raise ValueError(f"images[{number}] must have pixels, got {tuple(planes.shape)}")
    return planes.pin_memory() if pin and planes.device.type == "cpu" else planes
