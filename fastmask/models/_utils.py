"""Feature maps of a classifier; torchvision.models._utils' names."""

from collections import OrderedDict

from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.models._fold import conv_norm


class IntermediateLayerGetter(NotScriptable, nn.ModuleDict):
    """Runs the children of a model in order, up to the last one requested, and returns the outputs of those requested.

    Args:
        model: its direct children run one after the other.
        return_layers: {child's name: name of its output}.
    """

    _version = 2

    def __init__(self, model: nn.Module, return_layers: dict[str, str]) -> None:
        children = OrderedDict(model.named_children())
        missing = set(return_layers) - set(children)
        if missing:
            raise ValueError(f"return_layers must be children of the model, got {sorted(missing)}")
        last = max(list(children).index(name) for name in return_layers)
        super().__init__(OrderedDict(list(children.items())[: last + 1]))
        self.return_layers = {str(name): str(output) for name, output in return_layers.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = OrderedDict()
        names = list(self)
        folded = "bn1" in names and "conv1" in names and names.index("bn1") == names.index("conv1") + 1
        for name, module in self.items():
            if folded and name == "conv1":
                x = conv_norm(module, self["bn1"], x)
            elif not (folded and name == "bn1"):
                x = module(x)
            if name in self.return_layers:
                outputs[self.return_layers[name]] = x
        return outputs
