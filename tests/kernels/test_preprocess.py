"""fastmask::preprocess against its specification and torch's operations: types, layouts, sizes, adversarial pixels."""

import pytest
import torch
import torch.nn.functional as F
from helpers.inputs import INF, NAN
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.preprocess import preprocess_op

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PADDED = (32, 64)
ONE_ULP = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float64: 0.0}
Sizes = list[tuple[int, int]]


def draw() -> tuple[list[Tensor], Sizes]:
    """Upscaled, downscaled, both, neither; one pixel to many and many to one; strides of all kinds."""

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    images = [
        (noise(3, 17, 30), (32, 57)),
        (noise(45, 80, 3).permute(2, 0, 1), (30, 53)),
        (noise(3, 20, 64), (31, 40)),
        (noise(3, 12, 13), (12, 13)),
        (noise(3, 12, 13), (12, 40)),
        (noise(3, 1, 1), (5, 7)),
        (noise(3, 50, 61), (1, 1)),
        (noise(3, 22, 60)[:, ::2, ::3], (25, 32)),
        (noise(30, 20, 3).permute(2, 1, 0).flip(0), (17, 33)),
        (noise(1, 14, 15).expand(3, 14, 15), (28, 30)),
        (torch.rand(3, 21, 33), (30, 47)),
        (torch.rand(21, 33, 3).half().permute(2, 0, 1), (20, 20)),
        (torch.rand(3, 40, 60).bfloat16(), (16, 24)),
        (torch.rand(3, 10, 11, dtype=torch.float64), (32, 64)),
    ]
    return [image for image, _ in images], [size for _, size in images]


def run(
    device: torch.device, images: list[Tensor], sizes: Sizes, dtype: torch.dtype = torch.float32, more: int = 0
) -> Tensor:
    """Into a buffer that was full of something else."""
    shape = (len(images) + more, 3, *PADDED)
    pixels = torch.full(shape, NAN, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    preprocess_op([image.to(device) for image in images], heights, widths, MEAN.to(device), STD.to(device), pixels)
    return pixels.cpu()


def in_torch(images: list[Tensor], sizes: Sizes) -> Tensor:
    """Preprocess with torch's operations, on the images' device."""
    out = torch.zeros(len(images), 3, *PADDED, device=images[0].device)
    for padded, image, (height, width) in zip(out, images, sizes, strict=True):
        scaled = image.float() if image.is_floating_point() else image.float() / 255
        normalized = (scaled - MEAN.to(out.device)[:, None, None]) / STD.to(out.device)[:, None, None]
        resized = F.interpolate(normalized[None], size=(height, width), mode="bilinear", align_corners=False)
        padded[:, :height, :width] = resized[0]
    return out


def test_meets_the_specification(device: torch.device) -> None:
    images, sizes = draw()
    actual = run(device, images, sizes, more=2)
    expected = reference_layers.preprocess(images, sizes, MEAN, STD, PADDED)
    torch.testing.assert_close(actual[:-2].double(), expected, rtol=0, atol=1e-5)
    assert not actual[-2:].any()  # of a batch that is not full


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_numbers_of_channels(channels: int, device: torch.device) -> None:
    """Into channels-last buffers that were full of something else."""
    images = [torch.randint(0, 256, (channels, 7, 10), dtype=torch.uint8), torch.rand(9, 5, channels).permute(2, 0, 1)]
    mean, std = torch.rand(channels), torch.rand(channels) + 0.1
    sizes = [(12, 16), (6, 7)]
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    pixels = torch.full((3, channels, *PADDED), NAN, device=device).contiguous(memory_format=torch.channels_last)
    preprocess_op([image.to(device) for image in images], heights, widths, mean.to(device), std.to(device), pixels)
    expected = reference_layers.preprocess(images, sizes, mean, std, PADDED)
    torch.testing.assert_close(pixels[:2].double().cpu(), expected, rtol=1e-5, atol=1e-5)
    assert not pixels[2].any()


@pytest.mark.parametrize("dtype", ONE_ULP, ids=str)
def test_equals_torchs_operations(dtype: torch.dtype, device: torch.device) -> None:
    images, sizes = draw()
    actual = run(device, images, sizes, dtype)
    expected = in_torch(images, sizes).to(dtype)
    # bfloat16 is cut off in Triton's interpreter
    torch.testing.assert_close(actual, expected, rtol=2 * ONE_ULP[dtype] if INTERPRET else ONE_ULP[dtype], atol=1e-5)
    for padded, (height, width) in zip(actual, sizes, strict=True):
        assert not padded[:, height:].any()
        assert not padded[:, :, width:].any()


@pytest.mark.skipif(INTERPRET, reason="tests the eager fallback")
def test_on_a_cpu_it_is_torchs_operations() -> None:
    images, sizes = draw()
    assert torch.equal(run(torch.device("cpu"), images, sizes), in_torch(images, sizes))


@pytest.mark.gpu
def test_equals_torchs_operations_on_a_gpu() -> None:
    """To 1e-5, and the rounding of a position times the steepest step there is, should nvcc not contract as we do."""
    images, sizes = draw()
    expected = in_torch([image.cuda() for image in images], sizes).cpu()
    slack = 2.0**-24 * 64 / float(STD.min())
    torch.testing.assert_close(run(torch.device("cuda"), images, sizes), expected, rtol=0, atol=1e-5 + slack)


def test_far_ends_of_large_images(device: torch.device) -> None:
    """Where one rounding of a position more is 1e-4 pixels."""
    images, sizes = [torch.randint(0, 256, (3, 2, 5000), dtype=torch.uint8)], [(2, 4001)]
    pixels = torch.empty(1, 3, 2, 4001, device=device)
    preprocess_op([images[0].to(device)], [2], [4001], MEAN.to(device), STD.to(device), pixels)
    expected = reference_layers.preprocess(images, sizes, MEAN, STD, sizes[0])
    torch.testing.assert_close(pixels.double().cpu(), expected, rtol=0, atol=1e-5)


def test_pixels_that_are_not_finite(device: torch.device) -> None:
    images = [torch.rand(3, 12, 20) for _ in range(3)]
    images[0][0, 5, 7], images[1][1, 6, 6], images[2][2, 0, 0] = NAN, INF, -INF
    sizes = [(24, 39), (10, 13), (12, 20)]
    actual = run(device, images, sizes)
    expected = reference_layers.preprocess(images, sizes, MEAN, STD, PADDED)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5, equal_nan=True)
    assert actual.isnan().sum() > 0


def test_over_two_to_the_31_elements(device: torch.device) -> None:
    """An image whose rows lie far apart, in memory of which only they are touched."""
    far = 2**30
    memory = torch.empty(2 * far + 200, dtype=torch.uint8, device=device)
    image = memory.as_strided((3, 3, 20), (40, far, 2))
    image.copy_(torch.randint(0, 256, (3, 3, 20), dtype=torch.uint8))
    assert sum(stride * (size - 1) for stride, size in zip(image.stride(), image.shape, strict=True)) > 2**31 - 1
    pixels = torch.empty(1, 3, *PADDED, device=device)
    preprocess_op([image], [7], [30], MEAN.to(device), STD.to(device), pixels)
    expected = reference_layers.preprocess([image.cpu()], [(7, 30)], MEAN, STD, PADDED)
    torch.testing.assert_close(pixels.double().cpu(), expected, rtol=0, atol=1e-5)


def test_empty(device: torch.device) -> None:
    assert not run(device, [], [], more=2).any()
    assert run(device, [], []).shape == (0, 3, *PADDED)


@pytest.mark.skipif(not HAS_TRITON, reason="tests what takes the eager fallback instead of Triton")
def test_more_than_int32_counts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmask.kernels.triton import preprocess as preprocess_triton

    images, sizes = draw()
    monkeypatch.setattr(preprocess_triton, "LARGEST", 40)
    expected = reference_layers.preprocess(images, sizes, MEAN, STD, PADDED)
    torch.testing.assert_close(run(device, images, sizes).double(), expected, rtol=0, atol=1e-4)


def test_registration_is_sound(device: torch.device) -> None:
    images, sizes = draw()
    images = [image.to(device) for image in images[:3]]
    pixels = torch.zeros(4, 3, *PADDED, device=device)
    heights, widths = [height for height, _ in sizes[:3]], [width for _, width in sizes[:3]]
    torch.library.opcheck(preprocess_op, (images, heights, widths, MEAN.to(device), STD.to(device), pixels))


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    """Images of several kinds on the device: the table of where they lie is all that is copied, from pinned memory."""
    images, sizes = draw()
    images = [image.cuda() for image in images]
    pixels = torch.empty(len(images), 3, *PADDED, device="cuda")
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    arguments = (images, heights, widths, MEAN.cuda(), STD.cuda(), pixels)
    preprocess_op(*arguments)  # compiling does wait
    expected = pixels.clone()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pixels.fill_(NAN)
        preprocess_op(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(pixels, expected)


@pytest.mark.gpu
def test_on_a_side_stream() -> None:
    """The kernel reads what the stream wrote just before, and the images may be freed at once."""
    images, sizes = draw()
    expected = run(torch.device("cuda"), images, sizes)
    sources = [image.cuda() for image in images]
    pixels = torch.empty(len(images), 3, *PADDED, device="cuda")
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    mean, std = MEAN.cuda(), STD.cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = [torch.zeros_like(image) for image in sources]
        torch.cuda._sleep(100_000_000)  # cycles
        for buffer, source in zip(late, sources, strict=True):
            buffer.copy_(source)
        preprocess_op(late, heights, widths, mean, std, pixels)
        del late
        torch.full((10_000_000,), 77, dtype=torch.uint8, device="cuda")
    side.synchronize()
    assert torch.equal(pixels.cpu(), expected)


@pytest.mark.skipif(not HAS_TRITON, reason="of the Triton kernel")
def test_a_table_that_graphs_may_hold(device: torch.device) -> None:
    from fastmask.kernels.triton import preprocess as preprocess_triton

    words = [0, 2**62 + 1, -3, 7]
    assert preprocess_triton.fill_table(words, device).tolist() == words


@pytest.mark.gpu
def test_tables_are_kept_for_their_stream() -> None:
    """A stream of images at one address copies their table once; a graph holds none that may go."""
    from fastmask.kernels.triton import preprocess as preprocess_triton

    images, sizes = draw()
    images = [image.cuda() for image in images]
    pixels = torch.empty(len(images), 3, *PADDED, device="cuda")
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    arguments = (images, heights, widths, MEAN.cuda(), STD.cuda(), pixels)
    preprocess_triton._tables.clear()
    preprocess_op(*arguments)
    preprocess_op(*arguments)
    assert len(preprocess_triton._tables) == 1
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        preprocess_op(*arguments)
    assert len(preprocess_triton._tables) == 2
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        preprocess_op(*arguments)
    assert len(preprocess_triton._tables) == 2
    expected = pixels.clone()
    pixels.fill_(NAN)
    graph.replay()
    assert torch.equal(pixels, expected)
