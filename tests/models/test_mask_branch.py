"""The last layers of the mask branch run as one op or as layers, with the same results."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastmask.models.detection import _mask_head
from fastmask.models.detection.mask_rcnn import MaskRCNNPredictor


def draw(dtype: torch.dtype = torch.float32) -> tuple[MaskRCNNPredictor, Tensor, Tensor, Tensor]:
    """A predictor without gradients, hidden [2 * 3, 8, 14, 14], labels [2, 3], count [2]."""
    predictor = MaskRCNNPredictor(8, 16, 4).to(dtype).requires_grad_(False)
    nn.init.normal_(predictor.conv5_mask.bias)
    return predictor, torch.randn(6, 8, 14, 14).to(dtype), torch.randint(4, (2, 3)), torch.tensor([3, 1])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one element for each call of the op."""
    found: list[int] = []
    op = _mask_head.class_masks_op
    monkeypatch.setattr(_mask_head, "class_masks_op", lambda *args: (found.append(1), op(*args))[1])
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_op_gives_what_the_layers_do(
    dtype: torch.dtype, calls: list[int], monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    predictor, *tensors = draw(dtype)
    predictor, tensors = predictor.to(device), [tensor.to(device) for tensor in tensors]
    masks = _mask_head.predict_mask_probs(predictor, *tensors)
    assert len(calls) == 1
    monkeypatch.setattr(_mask_head, "can_replace", lambda *_: False)
    expected = _mask_head.predict_mask_probs(predictor, *tensors)
    assert len(calls) == 1
    torch.testing.assert_close(masks, expected, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
    assert masks.shape == (2, 3, 28, 28)
    assert not masks[1, 1:].any()


def keep_gradients(predictor: MaskRCNNPredictor) -> None:
    predictor.requires_grad_()


def hook(predictor: MaskRCNNPredictor) -> None:
    predictor.relu.register_forward_hook(lambda *_: None)


def hook_before(predictor: MaskRCNNPredictor) -> None:
    predictor.conv5_mask.register_forward_pre_hook(lambda *_: None)


def drop_bias(predictor: MaskRCNNPredictor) -> None:
    predictor.conv5_mask.bias = None


def widen(predictor: MaskRCNNPredictor) -> None:
    predictor.conv5_mask = nn.ConvTranspose2d(8, 16, 4, 2, 1)


def take_gelu(predictor: MaskRCNNPredictor) -> None:
    predictor.relu = nn.GELU()


def use_own_layer(predictor: MaskRCNNPredictor) -> None:
    predictor.conv5_mask = type("Own", (nn.ConvTranspose2d,), {})(8, 16, 2, 2)


def group(predictor: MaskRCNNPredictor) -> None:
    predictor.conv5_mask = nn.ConvTranspose2d(8, 16, 2, 2, groups=2)


def widen_weights(predictor: MaskRCNNPredictor) -> None:
    predictor.mask_fcn_logits.double()


def take_three(predictor: MaskRCNNPredictor) -> None:
    predictor.mask_fcn_logits = nn.Conv2d(16, 4, 3, padding=1)


CHANGES = [
    keep_gradients,
    hook,
    hook_before,
    drop_bias,
    widen,
    take_gelu,
    use_own_layer,
    group,
    widen_weights,
    take_three,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_no_plain_predictor_stays_layers(change: Callable[[MaskRCNNPredictor], None]) -> None:
    predictor, hidden, _, _ = draw()
    assert _mask_head.can_replace(predictor, hidden)
    change(predictor)
    if change is keep_gradients:
        with torch.no_grad():
            assert _mask_head.can_replace(predictor, hidden)
    else:
        predictor.requires_grad_(False)
    assert not _mask_head.can_replace(predictor, hidden)


def test_users_own_predictors_and_autocast_stay_layers(calls: list[int]) -> None:
    predictor, *tensors = draw()
    own = nn.Sequential(*predictor)
    torch.testing.assert_close(
        _mask_head.predict_mask_probs(own, *tensors),
        _mask_head.predict_mask_probs(predictor, *tensors),
        rtol=0,
        atol=1e-5,
    )
    assert len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        _mask_head.predict_mask_probs(predictor, *tensors)
    assert len(calls) == 1


def test_gradients_flow(calls: list[int]) -> None:
    predictor, hidden, labels, count = draw()
    _mask_head.predict_mask_probs(predictor, hidden.requires_grad_(), labels, count).sum().backward()
    assert hidden.grad is not None
    assert not calls


class Branch(nn.Module):
    def __init__(self, predictor: MaskRCNNPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, hidden: Tensor, labels: Tensor, count: Tensor) -> Tensor:
        return _mask_head.predict_mask_probs(self.predictor, hidden, labels, count)


def test_exports_keep_the_layers_and_compiled_programs_the_op() -> None:
    """torch 2.11 is an exception: its compiler takes every program for one to export, and sees the layers."""
    predictor, *tensors = draw()
    exported = torch.export.export(Branch(predictor), tuple(tensors))
    assert "class_masks" not in str(exported.graph)
    assert "conv_transpose" in str(exported.graph)
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(str(graph.graph))
        return graph

    with torch.no_grad():
        torch.compile(Branch(predictor), fullgraph=True, backend=keep)(*tensors)
        exporting = torch.compile(lambda x: x + float(torch.compiler.is_exporting()), backend="eager")
        taken_for_export = bool(exporting(torch.zeros(())))
    assert len(graphs) == 1
    assert ("class_masks" in graphs[0]) != taken_for_export
    assert not taken_for_export or torch.__version__.startswith("2.11.")
