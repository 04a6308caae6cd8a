"""Binary layers as they are trained, and the change of a module's layers into them. Imported only where torch is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from holdall.errors import BadInput
from holdall.weights.binary_operators import OPERATORS, Operator
from holdall.weights.training import evaluated


class _Binary(nn.Module):
    """A layer whose weights and inputs are signs."""

    operator: Operator


def scaled(layer: Any, dots: Tensor, a: Tensor) -> Tensor:
    """dots * scale * factor + bias, of products `dots` of the signs of a."""
    wide = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (dots.ndim - 2))
    scale, factor = layer.operator.scale(layer.weight), layer.operator.factor(a)
    if scale is not None:
        dots = dots * scale.view(wide)
    for i, along in enumerate(layer.operator.places()):
        if len(along) != dots.shape[2 + i]:
            raise BadInput("size of the input", f"outputs {tuple(dots.shape[2:])}", fixed_size(layer))
        dots = dots * along.view(-1, *[1] * (dots.ndim - 3 - i))
    if factor is not None:
        dots = dots * factor.view(-1, *[1] * (dots.ndim - 1))
    return dots if layer.bias is None else dots + layer.bias.view(wide)


def fixed_size(layer: _Binary) -> str:
    return f"{layer.operator.place}: the learned scales of xnor++ fix the size"


class BinaryLinear(_Binary, nn.Linear):
    def __init__(self, *shape: Any, operator: str = "reactnet", **named: Any):
        nn.Linear.__init__(self, *shape, **named)
        _give(self, operator, ())

    def forward(self, input: Tensor) -> Tensor:
        dots = nn.functional.linear(self.operator(input), self.operator.signs(self.weight))
        return scaled(self, dots, input)


class _Conv(_Binary):
    def forward(self: Any, input: Tensor) -> Tensor:
        dots = self._conv_forward(self.operator(input), self.operator.signs(self.weight), None)
        return scaled(self, dots, input)


class BinaryConv1d(_Conv, nn.Conv1d):
    def __init__(
        self, *shape: Any, operator: str = "reactnet", place: tuple[int, ...] | None = None, **named: Any
    ):
        nn.Conv1d.__init__(self, *shape, **named)
        _give(self, operator, place)


class BinaryConv2d(_Conv, nn.Conv2d):
    def __init__(
        self, *shape: Any, operator: str = "reactnet", place: tuple[int, ...] | None = None, **named: Any
    ):
        nn.Conv2d.__init__(self, *shape, **named)
        _give(self, operator, place)


KINDS: dict[type[nn.Module], type[_Binary]] = {
    nn.Linear: BinaryLinear, nn.Conv1d: BinaryConv1d, nn.Conv2d: BinaryConv2d,
}  # fmt: skip


def known(operator: str) -> type[Operator]:
    if operator not in OPERATORS:
        raise BadInput("operator", operator, f"one of {', '.join(OPERATORS)}")
    return OPERATORS[operator]


def _give(layer: Any, operator: str, place: tuple[int, ...] | None) -> None:
    made = known(operator)
    if made.fixed and place is None and not isinstance(layer, nn.Linear):
        raise BadInput(
            "size of the outputs", "none", f"an example, or the size: {operator} scales rows and columns"
        )
    flat = isinstance(layer, nn.Linear)  # which has no rows and columns
    channels = layer.in_features if flat else layer.in_channels
    layer.operator = made(layer.weight, channels, place if made.fixed and place and not flat else ())


def candidates(module: nn.Module, keep: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Linear, Conv1d and Conv2d layers but the first, the last and those that `keep` names, in the module's order.

    Only exactly these classes: others may use their weights in their own way (an attention's own projections do).
    """
    found = {n: m for n, m in module.named_modules() if type(m) in KINDS}
    inner = dict(list(found.items())[1:-1])
    return {n: m for n, m in inner.items() if not any(fnmatchcase(n, k) for k in keep)}


def binarize(
    module: nn.Module, operator: str = "reactnet", *, keep: Sequence[str] = (), example: Any = None
) -> nn.Module:
    """A copy whose inner layers are binary, to be trained in a loop of your own.

    operator: bnn, xnor, dorefa, bireal, xnor++, reactnet, recu or fda. keep: patterns of names that stay as they are,
    besides the first and the last layer. example: a batch as the trainer takes it; xnor++ needs one where there are
    convolutions. Then: `groups` for the optimiser, `advance` in each step (recu and fda change as training goes on),
    `Binary(operator=...).pack` for the file.
    """
    known(operator)
    copied = copy.deepcopy(module)
    chosen = candidates(copied, keep)
    if not chosen:
        raise BadInput("module", type(module).__name__, "three or more Linear, Conv1d or Conv2d layers")
    sizes = output_sizes(copied, chosen, example) if OPERATORS[operator].fixed and example is not None else {}
    for name, layer in chosen.items():
        kind = KINDS[type(layer)]
        layer.__class__ = kind  # where it stands, so that everything that refers to it still does
        _give(layer, operator, sizes.get(name))
    return unfused(copied)


def unfused(module: nn.Module) -> nn.Module:
    """With torch's own transformer layers told to run their parts: fused, they use weights without their layer."""
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
    return module


def output_sizes(module: nn.Module, layers: dict[str, nn.Module], example: Any) -> dict[str, tuple[int, ...]]:
    """The size beyond channels that each layer's output has for this batch."""
    found: dict[str, tuple[int, ...]] = {}

    def look(name: str) -> Any:
        def hook(_m: Any, _a: Any, out: Tensor) -> None:
            found[name] = tuple(out.shape[2:])

        return hook

    shown(module, example, [layer.register_forward_hook(look(n)) for n, layer in layers.items()])
    return found


def shown(module: nn.Module, example: Any, hooks: Sequence[Any]) -> Any:
    """What the module, evaluated, gives for a batch, with hooks that are then taken away."""
    try:
        with evaluated(module):
            return module(**example) if isinstance(example, dict) else module(example[0])
    finally:
        for hook in hooks:
            hook.remove()


def binary_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, _Binary))


def advance(module: nn.Module, done: float) -> None:
    """Tell all operators which share of the training is over."""
    for _, layer in binary_layers(module):
        layer.operator.done = done


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser; weights of which only the sign counts, and what scales them, do not decay."""
    free = {id(p) for _, layer in binary_layers(module) for p in layer.parameters()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in free], "weight_decay": 0.0},
    ]
