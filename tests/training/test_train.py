"""``fastmask train`` and its function: where the data is, which weights it starts from, errors."""

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torchvision
from helpers.images import draw_image_file
from helpers.slim import slim_model
from torch import nn

import fastmask
from fastmask.cli import main, train as command_line
from fastmask.data import FORMATS, Record, write_dataset
from fastmask.data.splits import label_names, read_splits
from fastmask.demo import CLASSES, save_synthetic, synthetic_dataset
from fastmask.inference import load_pretrained
from fastmask.models import detection, save_weights
from fastmask.training import TrainConfig, Trainer, train
from fastmask.training.config import CHOICES
from fastmask.variants import CHOICES as VARIANTS

BOARD = ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
RECORD = Record(Path("none.png"), (64, 64), ())
NAMES = ["__background__", *CLASSES[:4]]


@pytest.fixture
def drawn(tmp_path: Path, seed: int) -> Path:
    for part, number in (("train", 4), ("val", 2)):
        save_synthetic(synthetic_dataset(number, seed + number, (64, 96), "mixed"), tmp_path / "set" / part)
    return tmp_path / "set"


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = ["--data-path", str(data), "--out", str(out), "--model", "slim", "--device", "cpu", "--workers", "0"]
    return ["train", *options, "--epochs", "1", "--min-size", "64", *more]


def test_where_data_is(drawn: Path, tmp_path: Path, seed: int) -> None:
    """As the balloons have it; as COCO has it; a file, or a folder with annotations, is all for training."""
    splits = read_splits(drawn)
    assert (len(splits.train.records), len(splits.val.records)) == (4, 2)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        dataset = read_splits(drawn / part.removesuffix("2017")).train
        write_dataset(dataset, tmp_path / "coco" / "annotations" / f"instances_{part}.json", "coco")
        (tmp_path / "coco" / part).mkdir()
    splits = read_splits(tmp_path / "coco")
    assert (len(splits.train.records), len(splits.val.records)) == (4, 2)
    alone = read_splits(drawn / "train" / "annotations.json")
    assert (len(alone.train.records), alone.val) == (4, None)
    (tmp_path / "coco" / "annotations" / "instances_train2018.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must have one file instances_train\*.json, got 2"):
        read_splits(tmp_path / "coco")
    content = json.loads((drawn / "val" / "annotations.json").read_text())
    for category in content["categories"]:
        category["name"] += "s"
    (drawn / "val" / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val must have categories of .*train, got ellipses, triangles"):
        read_splits(drawn)
    assert label_names(synthetic_dataset(0)._replace(categories={"cat": 3, "dog": 1})) == [
        "__background__",
        "dog",
        "-",
        "cat",
    ]


def test_from_a_file_to_better_weights(
    drawn: Path, slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From torchvision's weights, to a file that ``predict`` and ``evaluate`` take, with names of its own."""
    assert main(command(drawn, tmp_path / "out", "--weights", str(slim_file[0]), "--lr", "1e-9", *BOARD)) == 0
    printed = capsys.readouterr()
    assert "4 images, 4 classes, 2 steps of 2 images on 1 x cpu, learning rate 1e-09" in printed.out
    assert "mask AP" in printed.out
    last = torch.load(tmp_path / "out" / "last.pth")
    assert last["categories"] == NAMES
    assert last["builder"] == "slim"  # which all commands build, with these options
    assert last["options"].items() >= {"min_size": 64, "max_size": 200, "box_detections_per_img": 30}.items()
    for name, value in slim_file[1].state_dict().items():
        if "predictor" not in name:  # of other categories
            torch.testing.assert_close(last["model"][name], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        last["model"]["roi_heads.box_predictor.cls_score.weight"],
        slim_file[1].state_dict()["roi_heads.box_predictor.cls_score.weight"],
    )
    weights = ["--weights", str(tmp_path / "out" / "best.pth")]
    evaluation = ["evaluate", str(drawn / "val"), *weights, "--out", str(tmp_path / "evaluation")]
    assert main(evaluation) == 0
    metrics = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["metrics"]
    (epoch,) = json.loads((tmp_path / "out" / "epochs.json").read_text())
    assert [metrics["mask"]["ap"], metrics["box"]["ar_100"]] == pytest.approx([epoch["mask"][0], epoch["box"][8]])
    assert not BOARD or list((tmp_path / "out" / "tensorboard").iterdir())
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["lr"] == 1e-9
    assert settings["fastmask"] == fastmask.__version__
    assert main(command(drawn, tmp_path / "out", "--weights", "none")) == 2
    assert "--out must be a new folder, or resume (--resume) be set" in capsys.readouterr().err
    again = command(drawn, tmp_path / "again", "--weights", str(tmp_path / "out" / "last.pth"), "--lr", "1e-9")
    again[again.index("--model") : again.index("--model") + 2] = []
    assert main(again) == 0  # the same categories: all weights are loaded
    for name, value in torch.load(tmp_path / "again" / "last.pth")["model"].items():
        torch.testing.assert_close(value, last["model"][name], rtol=1e-4, atol=1e-5)


def test_commands_need_the_weights_alone(
    slim_file: tuple[Path, nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """predict, compare and export build what the file names; another ``--model`` is an error that names both."""
    own = tmp_path / "own.safetensors"
    options = {"min_size": 64, "max_size": 96}
    save_weights(slim_model(fastmask).state_dict(), own, builder="slim", categories=["-", *"abcd"], options=options)
    image = str(draw_image_file(tmp_path / "a.png", 64, 96))
    seen = []
    monkeypatch.setattr(
        "fastmask.export.api.export_model", lambda model, file, **options: seen.append((model, options))
    )
    commands = (
        ["predict", image, "--out", str(tmp_path / "out")],
        ["compare", image, "--size", "64", "96", "--out", str(tmp_path / "c.png")],
        ["export", str(tmp_path / "a.onnx")],
    )
    for words in commands:
        assert main([*words, "--weights", str(own), "--model", "maskrcnn_slim_fpn"]) == 2
        assert f"--model must be slim with {own}, got maskrcnn_slim_fpn" in capsys.readouterr().err
        assert main([*words, "--weights", str(own)]) == 0
    ((model, options),) = seen
    assert (model.transform.min_size, options["categories"]) == ((64,), ["-", *"abcd"])


def test_interrupted_and_resumed_with_more_epochs(
    drawn: Path, slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C says how to go on, before the first checkpoint as well; all is resumed but what determines the losses."""
    words = command(drawn, tmp_path / "out", "--weights", "none", "--epochs", "2")
    run_step = Trainer._run_step
    for resume, step, hint in (
        ([], 0, "starts anew, as there is no checkpoint yet"),
        (["--resume"], 3, f"goes on from {tmp_path / 'out' / 'last.pth'}"),
    ):
        with pytest.MonkeyPatch.context() as patch:

            def interrupt(self: Trainer, batch: object, lr: float, number: int, step: int = step) -> object:
                if number == step:
                    raise KeyboardInterrupt
                return run_step(self, batch, lr, number)

            patch.setattr(Trainer, "_run_step", interrupt)
            assert main([*words, *resume]) == 130
        said = [line for line in capsys.readouterr().err.splitlines() if "fastmask train: interrupted" in line]
        assert said == [f"fastmask train: interrupted; the same command with --resume {hint}"]
    more = [*words, "--resume", "--epochs", "3", "--save-every", "1", *BOARD]
    assert main([*more, "--lr", "0.5"]) == 2
    assert "must be of the same run to be resumed, got --lr None (now 0.5)" in capsys.readouterr().err
    assert main(more) == 0
    assert [row["epoch"] for row in json.loads((tmp_path / "out" / "epochs.json").read_text())] == [1, 2, 3]
    printed = capsys.readouterr().out
    assert "epoch 3: loss" in printed
    assert main(more) == 0
    assert "all 3 epochs are done: more --epochs go on" in capsys.readouterr().out
    rows = (tmp_path / "out" / "steps.csv").read_text().splitlines()[1:]
    lrs = [float(row.split(",")[3]) for row in rows]
    assert lrs[2:] == [TrainConfig(3).lr_at(step, 6, 1) for step in range(2, 6)]  # the schedule of three epochs
    assert main([*words, "--resume", "--epochs", "2"]) == 2
    assert "--epochs must be at least 3, which " in capsys.readouterr().err
    other = [*words, "--resume", "--epochs", "3", "--model", "maskrcnn_slim_fpn"]
    assert main(other) == 2
    assert (
        "must be of the same run to be resumed, got --max-size 200 (now 320), --model slim (now mask"
        in capsys.readouterr().err
    )


def test_the_function_returns_the_best_epoch(drawn: Path, tmp_path: Path, seed: int) -> None:
    """Of a model and data sets: what best.pth and epochs.json hold."""
    torch.manual_seed(seed)
    model = detection.maskrcnn_slim_fpn(num_classes=5, min_size=64, max_size=96, box_detections_per_img=7)
    config, splits = TrainConfig(2, workers=0, min_size=(64,)), read_splits(drawn)
    result = train(model, splits.train, tmp_path / "out", config, val=splits.val, progress=False)
    assert result.weights == tmp_path / "out" / "best.pth"
    assert result.epochs == json.loads((tmp_path / "out" / "epochs.json").read_text())
    assert result.metrics["mask"].ap == max(epoch["mask"][0] for epoch in result.epochs)
    best = torch.load(result.weights)
    assert {kind: list(values) for kind, values in result.metrics.items()} == best["metrics"]
    assert best["builder"] == "maskrcnn_slim_fpn"  # whose model it is alike
    loaded, categories = load_pretrained(result.weights, device="cpu")
    assert (loaded.roi_heads.detections_per_img, list(categories)) == (7, NAMES)
    with pytest.raises(ValueError, match=r"model must have the data's 4 classes, the background's included, got 5"):
        train(model, synthetic_dataset(2, seed), tmp_path / "other", config)


def test_options_are_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """The command's names, defaults and choices are TrainConfig's."""
    parser = argparse.ArgumentParser()
    command_line.add_arguments(parser)
    args = parser.parse_args(["--data-path", "set", "--epochs", "3"])
    settings = dataclasses.asdict(TrainConfig(3))
    assert {name: getattr(args, name) for name in settings} == settings
    choices = {action.dest: action.choices for action in parser._actions if action.choices}
    assert choices == CHOICES | VARIANTS | {"format": ("auto", *FORMATS)}
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data-path", "set", "--epochs", "3", "--optimizer", "lion"])
    assert "invalid choice: 'lion'" in capsys.readouterr().err


@pytest.mark.parametrize(("scene", "same"), [("shapes", True), ("grains", False)])
def test_from_the_shipped_weights(
    scene: str, same: bool, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same classes, all of them are loaded; of others, all but the predictors. So is the size of images."""
    save_synthetic(synthetic_dataset(2, seed, (96, 128), scene), tmp_path / "set")
    options = [
        "--data-path",
        str(tmp_path / "set"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    options += ["--weights", "SHAPES_V1", "--epochs", "1", "--lr", "1e-9"]  # which choose their model
    assert main(["train", *options]) == 0
    assert ("is of other classes: the predictors start anew" in capsys.readouterr().out) != same
    last = torch.load(tmp_path / "out" / "last.pth")
    assert last["builder"] == "maskrcnn_slim_fpn"
    assert last["options"].items() >= {"min_size": 192, "max_size": 320}.items()
    assert all(value.is_contiguous() for value in last["model"].values())
    moments = [values["momentum_buffer"] for values in last["optimizer"]["state"].values()]
    assert not all(value.is_contiguous() for value in moments)  # nor were the weights that were trained
    shipped = fastmask.models.detection.MaskRCNN_Slim_FPN_Weights.SHAPES_V1.get_state_dict()
    for name, value in shipped.items():
        if "running" not in name and "batches" not in name and (same or "predictor" not in name):
            torch.testing.assert_close(last["model"][name], value, rtol=1e-4, atol=1e-5)
    assert (last["model"]["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4) == same


@pytest.mark.slow
def test_from_coco_weights(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet-50 file made by torchvision, where COCO_V1 would be downloaded to, on classes of one's own."""
    member = fastmask.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    trained = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = {key: value for key, value in trained.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, cache / member.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    save_synthetic(synthetic_dataset(4, seed, (128, 160)), tmp_path / "set")
    options = ["--data-path", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--device", "cpu", "--epochs", "1"]
    assert main(["train", *options, "--weights", "COCO_V1", "--min-size", "160", "--lr", "1e-6"]) == 0
    last = torch.load(tmp_path / "out" / "last.pth")
    assert last["model"]["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4
    moved = [
        name for name, value in state.items() if "predictor" not in name and not torch.equal(last["model"][name], value)
    ]
    assert moved
    for name in moved:
        torch.testing.assert_close(last["model"][name], state[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "yolo"], "--model must be one of"),
        (["--model", "maskrcnn_slim_fpn", "--weights", "imagenet"], "--weights must be none, SHAPES_V1 or a file for"),
        (
            ["--model", "maskrcnn_slim_fpn"],
            "or a file for maskrcnn_slim_fpn, got COCO_V1",
        ),
        (
            ["--model", "maskrcnn_resnet34_fpn"],
            "--weights must be none, imagenet or a file for mask",
        ),
        (["--weights", "nothing.pth"], "or a file, got 'nothing.pth'"),
        (["--weights", "none", "--zoom", "0.5", "2"], "--size must be given with --zoom"),
        (["--weights", "none", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--weights", "none", "--device", "cuda:99"], "--device must be one that this machine has"),
        (["--weights", "none", "--val", "nowhere"], "nowhere"),
        (["--weights", "none", "--val", "OTHER"], "names must have one of the dataset's categories (cat"),
        (["--weights", "none", "--min-size", "800", "--max-size", "700"], "--min-size must be at most --max-size, 700"),
        (["--weights", "none", "--size", "50", "60"], r"--size must be (height, width), multiples of 32"),
        (
            ["--weights", "none", "--model", "keypointrcnn_slim_fpn", "--mask-head", "unet"],
            "--mask-head must be given to a Mask R-CNN only, got a KeypointRCNN",
        ),
    ],
)
def test_errors_of_arguments(
    options: list[str],
    message: str,
    drawn: Path,
    slim_file: tuple[Path, nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_dataset(synthetic_dataset(0)._replace(categories={"cat": 1}, records=[RECORD]), tmp_path / "OTHER", "coco")
    options = [str(tmp_path / "OTHER") if option == "OTHER" else option for option in options]
    assert main(command(drawn, tmp_path / "out", *options)) == 2
    printed = capsys.readouterr()
    (error,) = (line for line in printed.err.splitlines() if "left out of" not in line)
    assert message in error


def test_images_that_are_all_broken(
    drawn: Path, slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (drawn / "train" / "images").iterdir():
        file.write_bytes(b"torn")
    assert main(command(drawn, tmp_path / "out", "--weights", "none", "--workers", "1")) == 1
    printed = capsys.readouterr().err
    assert "images in a row cannot be read" in printed
    assert "Traceback" not in printed


def test_a_run_that_must_stop(
    drawn: Path, slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that overflow: exit code 1, the images are named; no traceback."""
    model = slim_model(fastmask)
    with torch.no_grad():
        weight = model.roi_heads.box_head.fc6.weight  # of every step, whether a mask is learned in it or not
        weight.fill_(3e38)
        weight[::2].neg_()  # of features of either sign one half overflows, which ReLU then keeps
    torch.save(model.state_dict(), tmp_path / "huge.pth")
    assert main(command(drawn, tmp_path / "out", "--weights", str(tmp_path / "huge.pth"))) == 1
    assert "a gradient is not finite at step 0" in capsys.readouterr().err
