"""Pickles that would do more than hold arrays, and the models that files of ours and torchvision's are of."""

import collections
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.matterport import draw_weights, write_h5

from fastmask.models import Checkpoint, detection, from_checkpoint, get_model
from fastmask.models.converters._pickle import read_pickle
from fastmask.models.converters.matterport import build_matterport

ARRAYS = [np.float32([[1, 2, 3], [4, 5, 6]]), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((0, 4), ">f4")]
ARRAYS += [np.array(3), np.array([True, False]), np.float16([1.5]), np.array([1, 2], ">i4")]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_come_back(protocol: int, tmp_path: Path) -> None:
    """In each protocol, and as Python 2 and NumPy 1 wrote them."""
    content = {"model": collections.OrderedDict((str(i), array) for i, array in enumerate(ARRAYS))}
    content |= {"plain": [1, 2.5, "ü", b"\xff", None, True, (10**30, np.float32(0.5))], 7: {}}
    path = tmp_path / "a.pkl"
    for old in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        dumped = pickle.dumps(content, protocol)
        if protocol < 4:  # the module's length is before it in later ones
            dumped = dumped.replace(b"numpy._core.multiarray", old)
        path.write_bytes(dumped)
        read = read_pickle(str(path))
        assert list(read) == ["model", "plain", 7]
        assert read["plain"] == [1, 2.5, "ü", b"\xff", None, True, [10**30, 0.5]]
        for value, array in zip(read["model"].values(), ARRAYS, strict=True):
            assert value.shape == array.shape
            assert np.array_equal(value.numpy(), array)
            assert value.numpy().dtype == array.dtype.newbyteorder("=")


def test_pickles_of_python_2(tmp_path: Path) -> None:
    """Their text is bytes, and so is an array's memory: written out by hand, as nothing here writes them."""
    raw = np.float32([1, 2, -3]).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x03\x85"
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"U"
        + bytes([len(raw)])
        + raw
        + b"tb"
    )
    path = tmp_path / "a.pkl"
    pairs = b"]]U\x01aa" + array + b"aa"
    path.write_bytes(b"\x80\x02}U\x05modelccollections\nOrderedDict\n" + pairs + b"\x85Rs.")
    assert torch.equal(read_pickle(str(path))["model"]["a"], torch.tensor([1.0, 2, -3]))


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def nest(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def doubled(times: int) -> bytes:
    """A tuple that would have 2 ** times parts if it were written out."""
    return b"]" + b"2\x86" * times


def string8(text: bytes, length: int) -> bytes:
    return b"\x80\x04\x8e" + struct.pack("<Q", length) + text + b"."


RECURSIVE: dict[str, Any] = {}
RECURSIVE["model"] = RECURSIVE
DTYPE = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
HOSTILE = {
    r"must be a checkpoint of arrays and plain values, got posix.system": lambda path: Call(os.system, f"touch {path}"),
    r"got builtins.exec": lambda path: Call(exec, f"open({str(path)!r}, 'w')"),
    r"got of\\n several\.lines": lambda path: b"\x80\x04\x8c\x0bof\n several\x8c\x05lines\x93.",
    r"got dtype of another kind": lambda path: b"\x80\x02cnumpy\ndtype\n%bK\x00K\x01\x87R." % doubled(60),
    r"got bytes of another encoding": lambda path: b"\x80\x02c_codecs\nencode\nU\x01a%b\x86R." % doubled(60),
    r"arrays must have a state of version, shape": lambda path: b"\x80\x02%bK\x01\x85b." % EMPTY,
    r"got builtins.getattr": lambda path: {"model": Call(getattr, 1, "real")},
    r"got numpy.(_core|core).multiarray.fromstring|got numpy.*load": lambda path: Call(np.load, str(path), None, True),
    r"got torch._utils._rebuild_tensor_v2": lambda path: {"model": {"a": torch.zeros(2)}},
    r"got builtins.set|got opcode EMPTY_SET": lambda path: {"model": {1}},
    r"got builtins.bytearray": lambda path: bytearray(9),
    r"cannot be read as a checkpoint: .*numbers, got dtype O8": lambda path: {"model": np.array([1, "a"], object)},
    r"cannot be read as a checkpoint: .*numbers, got dtype U3": lambda path: {"model": np.array(["abc"])},
    r"must not hold themselves": lambda path: RECURSIVE,
    r"must not hold themselves, nor 100 inside each other": lambda path: nest(10**5),
    r"got a key of tuple in": lambda path: {(1, 2): 3},
    r"got a state of type": lambda path: b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    r"got a state of dict": lambda path: b"\x80\x02}}U\x01aK\x01sb.",
    r"got a call of": lambda path: b"\x80\x02K\x01)R.",
    r"got opcode EXT1": lambda path: b"\x80\x02\x82\x01.",
    r"got opcode NEWOBJ": lambda path: b"\x80\x02cnumpy\nndarray\n)\x81.",
    r"got opcode BINPERSID": lambda path: b"\x80\x02K\x01Q.",
    r"must be a checkpoint of arrays and plain values, got a value of": lambda path: DTYPE.join((b"\x80\x02", b".")),
    r"must have no more bytes than the file's": lambda path: [Shared(i) for i in range(50)],
    r"cannot reshape array of size 1 into shape": lambda path: (
        b"\x80\x02" + EMPTY + b"(K\x01J\xff\xff\xff\x7f\x85" + DTYPE + b"\x89U\x04abcdtb."
    ),
    r"cannot be read as a checkpoint: .*": lambda path: string8(b"abc", 2**62),
    r"cannot be read as a checkpoint: .* ": lambda path: b"\x80\x02r\xff\xff\xff\x7f.",
    r"cannot be read as a checkpoint: unsupported pickle protocol": lambda path: b"\x80\x63.",
    r"cannot be read as a checkpoint:  *.": lambda path: b"\x80",
}


class Shared:
    """One array's memory, in as many arrays as there are of these."""

    DATA = bytes(4000)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        array = np.zeros(1000, np.float32)
        function, arguments, state = array.__reduce__()[:3]
        return function, arguments, (*state[:4], self.DATA)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path) -> None:
    """Each ends in one line that names the file and, where it has one, the name that it wanted."""
    trace = tmp_path / "executed"
    for message, make in HOSTILE.items():
        content = make(trace)
        (tmp_path / "a.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
        with pytest.raises(ValueError, match=rf"a.pkl .*{message}") as caught:
            Checkpoint(tmp_path / "a.pkl")
        assert "\n" not in str(caught.value)
        assert not trace.exists()


def test_torn_pickles(tmp_path: Path) -> None:
    whole = pickle.dumps({"model": {"a": np.zeros(100, np.float32)}, "more": [1, "two"]}, 4)
    for length in (0, 1, 2, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pkl").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a.pkl cannot be read as a checkpoint: ."):
            Checkpoint(tmp_path / "a.pkl")
    for content in (b"text", zlib.compress(whole), whole.replace(b"model", b"madel")):
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.pkl (cannot be read as a checkpoint|must hold a state dict)"):
            Checkpoint(tmp_path / "a.pkl")
    torch.save(RECURSIVE, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth must hold a state dict"):
        Checkpoint(tmp_path / "a.pth")


def test_files_of_ours_and_of_torchvisions(tmp_path: Path) -> None:
    """By their metadata, or by keys and shapes; a file of two builders must be told, or have its published name."""
    options = {"box_score_thresh": 0.25, "num_classes": 2}
    slim = detection.maskrcnn_slim_fpn(num_classes=3)
    torch.save(slim.state_dict(), tmp_path / "slim.pth")
    model: Any = from_checkpoint(tmp_path / "slim.pth", **options, new_predictors=True)
    assert (model.training, model.roi_heads.score_thresh, model.roi_heads.num_classes()) == (False, 0.25, 2)
    assert torch.equal(model.backbone.body.conv1.weight, slim.backbone.body.conv1.weight)
    own = {"model": slim.state_dict(), "builder": "maskrcnn_slim_fpn", "options": {"min_size": 99}}
    torch.save(own, tmp_path / "own.pth")
    assert from_checkpoint(tmp_path / "own.pth").transform.min_size == (99,)
    assert from_checkpoint(tmp_path / "own.pth", min_size=98).transform.min_size == (98,)
    with pytest.raises(ValueError, match=r"builder must be maskrcnn_slim_fpn with .*own.pth, got maskrcnn_resnet50_"):
        from_checkpoint(tmp_path / "own.pth", builder="maskrcnn_resnet50_fpn")
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2)
    torch.save(theirs.state_dict(), tmp_path / "mobile.pth")
    message = r"builder must be named for .*mobile.pth, .*, got keys and shapes of fasterrcnn_.* and fasterrcnn_.*_320"
    with pytest.raises(ValueError, match=message):
        from_checkpoint(tmp_path / "mobile.pth")
    assert from_checkpoint(tmp_path / "mobile.pth", builder=name).transform.max_size == 640
    file = detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1.url.rpartition("/")[2]
    (tmp_path / "mobile.pth").rename(tmp_path / file)
    assert from_checkpoint(tmp_path / file).transform.max_size == 640
    torch.save({"a": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"builder must be named for .*none.pth, .* got keys and shapes of none"):
        from_checkpoint(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError):
        from_checkpoint(tmp_path / "nowhere.pkl")
    with pytest.raises(ValueError, match=r"input_format must be None with .*own.pth, which is not of detectron2"):
        from_checkpoint(tmp_path / "own.pth", input_format="BGR")
    with pytest.raises(ValueError, match="aligned must be False with"):
        get_model("maskrcnn_slim_fpn", weights=write_options(tmp_path, slim, aligned=False), aligned=True)


def test_matterports_files_go_the_same_way(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_h5(tmp_path / "balloon.h5", draw_weights(0))
    model, expected = (
        from_checkpoint(tmp_path / "balloon.h5", box_score_thresh=0.5),
        build_matterport(tmp_path / "balloon.h5"),
    )
    assert (type(model), model.training, model.roi_heads.score_thresh) == (type(expected), False, 0.5)
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())


def write_options(folder: Path, model: Any, **options: Any) -> Path:
    torch.save({"model": model.state_dict(), "options": options}, folder / "options.pth")
    return folder / "options.pth"
