"""State dicts, weights and names of the models against torchvision's."""

import hashlib
import inspect
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import fastmask
from fastmask.models import Weights, WeightsEnum, detection

BUILDERS = [
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "keypointrcnn_resnet50_fpn",
]
BODIES = ["resnet18", "resnet34", "resnet101", "resnet152", "resnext101_32x8d"]
FAMILY = [f"{kind}_{body}_fpn" for kind in ("maskrcnn", "fasterrcnn") for body in BODIES]
FAMILY += ["keypointrcnn_resnet101_fpn", "keypointrcnn_resnext101_32x8d_fpn"]
C4 = [f"{kind}_resnet{n}_c4" for kind in ("maskrcnn", "fasterrcnn") for n in (50, 101)]
OWN = [
    "keypointrcnn_slim_fpn",
    "maskrcnn_slim_fpn",
    "maskrcnn_efficientnet_lite0_fpn",
    "maskrcnn_matterport",
    *FAMILY,
    *C4,
]  # which torchvision does not have
CLASSIFIERS = [n for n in fastmask.models.resnet.__all__ if n.startswith(("resne", "wide"))]
CLASSIFIERS += ["mobilenet_v3_large", "mobilenet_v3_small"]
KEYS = {"maskrcnn_resnet50_fpn": 360, "maskrcnn_resnet50_fpn_v2": 432, "keypointrcnn_resnet50_fpn": 366}


def build(library: object, name: str, **options: object) -> nn.Module:
    return library.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", [*BUILDERS, *CLASSIFIERS])
def test_state_dicts_are_torchvisions(name: str) -> None:
    options = {"weights_backbone": None} if "rcnn" in name else {}
    with torch.device("meta"):
        ours, theirs = (
            getattr(library.models.detection if options else library.models, name)(weights=None, **options)
            for library in (fastmask, torchvision)
        )
    actual, expected = ours.state_dict(), theirs.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in actual.items()] == [(k, v.shape, v.dtype) for k, v in expected.items()]
    assert len(actual) == KEYS.get(name, len(actual))
    trained = [[n for n, p in model.named_parameters() if p.requires_grad] for model in (ours, theirs)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    ("name", "frozen"), [*((name, True) for name in FAMILY), (FAMILY[0], False)], ids=lambda p: str(p)
)
def test_the_family_is_what_torchvision_builds(name: str, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ResNet's weights, which are not read here, norms are frozen and three of its layers trained."""
    kind = name.partition("_")[0]
    body = name.removeprefix(f"{kind}_").removesuffix("_fpn")
    models = torchvision.models.detection
    weights = fastmask.models.get_model_weights(body)["IMAGENET1K_V1"]
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(fastmask.models.resnet.ResNet, "load_state_dict", lambda *_: None)
    with torch.device("meta"):
        norms = {} if frozen else {"norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
        backbone = models.backbone_utils.resnet_fpn_backbone(backbone_name=body, weights=None, **norms)
        kinds = {"maskrcnn": models.MaskRCNN, "fasterrcnn": models.FasterRCNN, "keypointrcnn": models.KeypointRCNN}
        theirs = kinds[kind](backbone, 2 if kind == "keypointrcnn" else 91)
        ours = build(fastmask, name, weights_backbone=weights if frozen else None)
    for values in ("state_dict", "named_parameters"):
        actual, expected = (dict(getattr(model, values)()) for model in (ours, theirs))
        assert [(k, v.shape, v.dtype) for k, v in actual.items()] == [
            (k, v.shape, v.dtype) for k, v in expected.items()
        ]
        assert [v.requires_grad for v in actual.values()] == [v.requires_grad for v in expected.values()]
    assert fastmask.models.get_model_weights(name).__members__ == {}
    assert inspect.signature(fastmask.models.get_model_builder(name)).parameters["weights_backbone"].default is weights
    with pytest.raises(ValueError, match=r"weights must be a file, got 'COCO_V1'"):
        fastmask.models.get_model(name, weights="COCO_V1")
    with pytest.raises(TypeError, match=r"weights must be a file or None, got bool"):
        fastmask.models.get_model(name, weights=True)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_the_same_seed_gives_the_same_weights(name: str, seed: int) -> None:
    """Modules are initialized in torchvision's order."""
    states = []
    for library in (fastmask, torchvision):
        torch.manual_seed(seed)
        states.append(build(library, name, weights_backbone=None, num_classes=3).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}_ResNet50_FPN{version}_Weights" for kind in ("MaskRCNN", "FasterRCNN") for version in ("", "_V2")),
        *(f"FasterRCNN_MobileNet_V3_Large{size}_FPN_Weights" for size in ("", "_320")),
        "KeypointRCNN_ResNet50_FPN_Weights",
    ],
)
def test_weights_enums(name: str) -> None:
    ours, theirs = (getattr(library.models.detection, name) for library in (fastmask, torchvision))
    assert list(ours.__members__) == list(theirs.__members__)
    assert ours.DEFAULT is ours.COCO_V1
    assert fastmask.models.get_weight(f"{name}.COCO_V1") is ours.COCO_V1
    assert ours.verify("COCO_V1") is ours.verify(f"{name}.COCO_V1") is ours.COCO_V1
    assert repr(ours.COCO_V1) == f"{name}.COCO_V1"
    for member in ours.__members__:
        assert ours[member].url == theirs[member].url
        for key in ("categories", "num_params", "_metrics", "recipe", "min_size", "keypoint_names"):
            assert ours[member].meta.get(key) == theirs[member].meta.get(key)
    image = torch.randint(256, (3, 5, 6), dtype=torch.uint8)
    assert torch.equal(ours.COCO_V1.transforms()(image), theirs.COCO_V1.transforms()(image))


@pytest.mark.parametrize(
    "name",
    [
        name
        for module in (fastmask.models.resnet, fastmask.models.mobilenetv3)
        for name in module.__all__
        if name.endswith("_Weights")
    ],
)
def test_backbone_weights_enums(name: str) -> None:
    ours, theirs = (getattr(library.models, name) for library in (fastmask, torchvision))
    assert list(ours.__members__) == list(theirs.__members__)
    for member in ours.__members__:
        assert ours[member].url == theirs[member].url
        assert ours[member].meta["num_params"] == theirs[member].meta["num_params"]
        accuracy = theirs[member].meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert ours[member].meta["_metrics"] == {"ImageNet-1K": {"acc@1": accuracy}}
    with pytest.raises(NotImplementedError, match="no preset for classification"):
        ours.DEFAULT.transforms()


def test_models_by_name() -> None:
    assert {*BUILDERS, *CLASSIFIERS, *OWN} == set(fastmask.models.list_models())
    assert fastmask.models.list_models(include="mask*50_fpn*", exclude="*v2") == ["maskrcnn_resnet50_fpn"]
    assert fastmask.models.list_models(fastmask.models.detection) == sorted([*BUILDERS, *OWN])
    assert fastmask.models.list_models(module=fastmask.models) == sorted(CLASSIFIERS)
    assert fastmask.models.get_model_weights("maskrcnn_resnet50_fpn") is detection.MaskRCNN_ResNet50_FPN_Weights
    with pytest.raises(ValueError, match=r"name must be one of .*, got 'maskrcnn'"):
        fastmask.models.get_model("maskrcnn")
    with pytest.raises(ValueError, match=r"known weights, got 'MaskRCNN.V9'"):
        fastmask.models.get_weight("MaskRCNN.V9")
    with pytest.raises(TypeError, match=r"weights must be MaskRCNN_ResNet50_FPN_Weights.* got int"):
        detection.maskrcnn_resnet50_fpn(weights=3)


def put_in_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str, state: dict[str, torch.Tensor]) -> None:
    """A file made with torchvision lies in torch.hub's cache, as if it had been downloaded."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder))
    path = folder / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir()
    torch.save(state, path)


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated")
def test_coco_weights_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights load as in torchvision: norms frozen, eps 0, first stages not trained."""
    frozen = torchvision.ops.FrozenBatchNorm2d
    backbone = torchvision.models.resnet50(weights=None, norm_layer=frozen)
    backbone = torchvision.models.detection.backbone_utils._resnet_fpn_extractor(backbone, 3)
    state = torchvision.models.detection.MaskRCNN(backbone, num_classes=91).state_dict()
    assert len(state) == 307
    put_in_cache(monkeypatch, tmp_path, detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url, state)
    ours, theirs = (
        library.models.detection.maskrcnn_resnet50_fpn(weights="COCO_V1", progress=False)
        for library in (fastmask, torchvision)
    )
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    trained = [[name for name, p in model.named_parameters() if p.requires_grad] for model in (ours, theirs)]
    assert trained[0] == trained[1]
    assert {module.eps for module in ours.modules() if isinstance(module, fastmask.ops.FrozenBatchNorm2d)} == {0.0}
    with pytest.warns(UserWarning, match=r"equivalent to passing `weights=MaskRCNN_ResNet50_FPN_Weights.COCO_V1`"):
        old = detection.maskrcnn_resnet50_fpn(pretrained=True, progress=False)
    assert old.state_dict().keys() == state.keys()
    with pytest.raises(ValueError, match=r"num_classes must be 91 with MaskRCNN_ResNet50_FPN_Weights.COCO_V1, got 5"):
        detection.maskrcnn_resnet50_fpn(weights="COCO_V1", num_classes=5)


def test_offline_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(ConnectionError, match=r"put maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth into .*checkpoints"):
        detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.get_state_dict(progress=False)


def test_a_download_is_checked_and_a_broken_file_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.hub loads from a ``file:`` URL: the right hash loads, a wrong one and a truncated file do not."""
    torch.save({"a": torch.ones(2)}, tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    prefix = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    cache = tmp_path / "hub" / "checkpoints"

    def load(name: str, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        url = (tmp_path / name).as_uri()
        members = {"ONE": Weights(url, nn.Identity, {})}
        return WeightsEnum("Own_Weights", members)["ONE"].get_state_dict(*args, progress=False, **kwargs)

    (tmp_path / f"good-{prefix}.pth").write_bytes(content)
    assert torch.equal(load(f"good-{prefix}.pth")["a"], torch.ones(2))
    assert [path.name for path in cache.iterdir()] == [f"good-{prefix}.pth"]
    (tmp_path / "bad-00000000.pth").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"bad-00000000.pth is broken \(invalid hash value"):  # torch.hub's kind
        load("bad-00000000.pth")
    assert not (cache / "bad-00000000.pth").exists()
    own, device = tmp_path / "own", "meta"  # torch.hub's first arguments by position, as torchvision passes them on
    assert load("bad-00000000.pth", str(own), device, file_name="b", check_hash=False)["a"].is_meta
    (own / "b").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{own / 'b'} is broken"):
        load("bad-00000000.pth", str(own), file_name="b")
    (cache / f"good-{prefix}.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"good-{prefix}.pth is broken \(.*remove it and download again"):
        load(f"good-{prefix}.pth")


def test_old_checkpoints_load() -> None:
    """Old keys of torchvision load: bare convolutions in the RPN head, the FPN and the mask head."""
    with torch.device("meta"):
        model = build(fastmask, "maskrcnn_resnet50_fpn", weights_backbone=None)
    renamed = {}
    for key, value in model.state_dict().items():
        old = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if ".fpn." in key:
            old = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if "mask_head." in key:
            number = int(key.split("mask_head.")[1][0])
            old = key.replace(f"mask_head.{number}.0.", f"mask_head.mask_fcn{number + 1}.")
        renamed[old] = value
    assert len(set(renamed) - set(model.state_dict())) == 2 + 16 + 8
    model.load_state_dict(renamed, assign=True)


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained:UserWarning")
@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", pytest.param(BUILDERS[4], marks=pytest.mark.slow)]
)
def test_mobilenet_weights_from_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the detector or of its backbone: the same tensors, frozen parameters, frozen norms and their eps."""
    body = torchvision.models.mobilenet_v3_large(norm_layer=nn.BatchNorm2d).state_dict()
    put_in_cache(monkeypatch, tmp_path, fastmask.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1.url, body)
    pair = [getattr(v.models.detection, name)(num_classes=3, progress=False) for v in (fastmask, torchvision)]
    check_same_training(*pair)
    with torch.no_grad():
        whole = getattr(torchvision.models.detection, name)(progress=False).state_dict()
    url = fastmask.models.get_model_weights(name).COCO_V1.url
    torch.save(whole, tmp_path / "checkpoints" / url.rpartition("/")[2])
    options = {"weights": "COCO_V1", "trainable_backbone_layers": 5, "progress": False}
    check_same_training(*(getattr(v.models.detection, name)(**options) for v in (fastmask, torchvision)))


def check_same_training(ours: nn.Module, theirs: nn.Module) -> None:
    """What is trained, what is loaded, and how norms are set."""
    trained = [[n for n, p in model.named_parameters() if p.requires_grad] for model in (ours, theirs)]
    assert trained[0] == trained[1]
    loaded, expected = ours.state_dict(), theirs.state_dict()
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in loaded if key.startswith("backbone.body."))
    eps = [{m.eps for m in model.modules() if type(m).__name__ == "FrozenBatchNorm2d"} for model in (ours, theirs)]
    assert eps[0] == eps[1] == {1e-5}


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_mobilenet_backbones(name: str) -> None:
    """All numbers of trained layers, other stages, a single map; channels and scales as torchvision's."""
    for layers in range(7) if name.endswith("large") else (0,):
        others = [{"fpn": True, "returned_layers": [1, 2, 4]}, {"fpn": False}] if layers == 0 else []
        for options in ({"fpn": True}, *others):
            with torch.device("meta"):
                ours, theirs = (
                    v.models.detection.backbone_utils.mobilenet_backbone(
                        backbone_name=name, weights=None, trainable_layers=layers, **options
                    )
                    for v in (fastmask, torchvision)
                )
            assert [(n, p.shape, p.requires_grad) for n, p in ours.named_parameters()] == [
                (n, p.shape, p.requires_grad) for n, p in theirs.named_parameters()
            ]
            assert ours.out_channels == theirs.out_channels == 256
            if options["fpn"] and layers == 0:
                maps = ours(torch.empty(1, 3, 256, 320, device="meta"))
                assert {n: 256 // maps[n].shape[2] for n in ours.strides} == ours.strides
    with pytest.raises(ValueError, match=r"Trainable layers should be in the range \[0,\d\], got 9"):
        detection.backbone_utils.mobilenet_backbone(backbone_name=name, weights=None, fpn=True, trainable_layers=9)
    with pytest.raises(ValueError, match=r"Each returned layer should be in the range \[0,\d\], got \[9\]"):
        detection.backbone_utils.mobilenet_backbone(backbone_name=name, weights=None, fpn=True, returned_layers=[9])
    with pytest.raises(ValueError, match=r"backbone_name must be mobilenet_v3_large or .*, got 'mobilenet_v2'"):
        detection.backbone_utils.mobilenet_backbone(backbone_name="mobilenet_v2", weights=None, fpn=True)


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers(layers: int) -> None:
    names = []
    for library in (fastmask, torchvision):
        backbone = library.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=layers, returned_layers=[2, 4]
        )
        names.append([name for name, p in backbone.named_parameters() if p.requires_grad])
    assert names[0] == names[1]


def test_wrong_arguments_say_so() -> None:
    with pytest.raises(ValueError, match="backbone must have an attribute out_channels, got ReLU without"):
        detection.MaskRCNN(nn.ReLU(), 2)
    backbone = nn.Conv2d(3, 8, 1)
    backbone.out_channels = 8
    with pytest.raises(ValueError, match="num_classes or box_predictor must be given, got neither"):
        detection.FasterRCNN(backbone)
    with pytest.raises(TypeError, match="rpn_anchor_generator must be a AnchorGenerator or None, got int"):
        detection.FasterRCNN(backbone, 2, rpn_anchor_generator=3)
    with pytest.raises(ValueError, match="box_pooling must be roi_align or roi_pool, got 'max'"):
        detection.MaskRCNN(backbone, 2, box_pooling="max")
    pooler = fastmask.ops.MultiScaleRoIAlign(["0"], 7, 2)
    with pytest.raises(ValueError, match="sampling_ratio must not be given with roi_pool, which takes none, got 3"):
        detection.MaskRCNN(backbone, 2, box_pooling="roi_pool", sampling_ratio=3)
    with pytest.raises(ValueError, match="sampling_ratio must not be given with box_roi_pool, got 3"):
        detection.FasterRCNN(backbone, 2, box_roi_pool=pooler, sampling_ratio=3)
    with pytest.raises(ValueError, match="box_pooling must be roi_align where box_roi_pool is given, got roi_pool"):
        detection.FasterRCNN(backbone, 2, box_roi_pool=pooler, box_pooling="roi_pool")
    with pytest.raises(TypeError, match="mask_roi_pool must be a MultiScaleRoIAlign or None, got int"):
        detection.MaskRCNN(backbone, 2, mask_roi_pool=3)
    with pytest.raises(ValueError, match=r"Trainable layers should be in the range \[0,5\], got 6"):
        detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=6)
    with pytest.raises(ValueError, match=r"returned_layers: Each .* should be in the range \[1,4\]. Got \[5\]"):
        detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=[5])
    with pytest.warns(UserWarning, match="trainable_backbone_layers has no effect"), torch.device("meta"):
        detection.fasterrcnn_resnet50_fpn(weights_backbone=None, trainable_backbone_layers=2)
