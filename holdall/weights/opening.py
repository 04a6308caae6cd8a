"""A packed model as a running module, and any torch module made smaller where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.memory import return_early
from holdall.method import Method
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")


def open(path: str | Packed, memory: Spend = None, activations: int = 16) -> torch.nn.Module:
    """A running transformers module of a `.hold` file; its weights stay packed where its method can do that.

    memory: what the weights may take; BudgetError with the least that would do.
    activations: bits that `Coded` matrices round tokens to: 16, with which perplexity is that of float32 to four
        digits; 8, which costs what docs/weights.md says; or 32 for float32 throughout.
    The process returns freed memory early from then on (`memory.return_early`), or it would stay as large as unpacking
    was at its worst.
    """
    if activations not in (8, 16, 32):
        raise BadInput("activations", activations, "8, 16 or 32 bits")
    from holdall.verbs import method_of

    return_early()
    packed = Packed.open(path) if isinstance(path, str) else path
    method: Any = method_of(packed, str(path))
    if not isinstance(method, WeightCodec):
        raise BadInput("model", str(path), f"a packed model, not what {method.full_name()} packed")
    module: torch.nn.Module = method.open(packed, memory)
    for part in module.modules():
        held: Any = getattr(part, "held", None)
        if hasattr(held, "activations"):
            held.activations = activations
    return module


def quantize_(
    module: torch.nn.Module, method: Method | str, budget: Spend = None, *, data: Iterable[Any] | None = None
) -> torch.nn.Module:
    """Put packed matrices in place of a module's linears and convolutions, in place; returns the module.

    budget: of those matrices together, as `encode` takes it. Tables that share a linear's weights are packed with it.
    data: batches (tensors, or dicts of named arguments) that are run through the module first, so that methods which
    weigh errors by what goes into a matrix (mixllm) can; without, they see weights only. Everything is for inference
    afterwards. Grouped convolutions and subclasses with a forward of their own keep full-size weights, rounded.
    """
    from holdall.registry import get
    from holdall.weights.inputs import second_moments
    from holdall.weights.packed_linear import put, stands_for

    made: Any = get(method)() if isinstance(method, str) else method
    if not isinstance(made, WeightCodec):
        raise BadInput("method", made.full_name(), "one of the room weights")
    places = _places(module)
    weights = {paths[0] + ".weight": _matrix(module.get_submodule(paths[0])) for paths in places}
    if not weights:
        raise BadInput("module", type(module).__name__, "one with Linear or Conv2d in it")
    moments = {} if data is None else second_moments(module, data)
    shell, held = made.held(made.encode(Model(weights, name=type(module).__name__, moments=moments), budget))
    for paths in places:
        name = paths[0] + ".weight"
        for path in paths:
            owner: Any = module.get_submodule(path)
            new = stands_for(owner, held[name]) if name in held else None
            if new is not None:
                put(module, path, new.train(owner.training))
                continue
            dense = torch.from_numpy(held[name].dense()) if name in held else shell.state[name]
            with torch.no_grad():
                owner.weight.copy_(dense.reshape(owner.weight.shape))
    return module


def _matrix(owner: Any) -> torch.Tensor:
    """Its weights as [O, I]."""
    weight: torch.Tensor = owner.weight.detach()
    return weight.reshape(len(weight), -1).cpu()


def _places(module: torch.nn.Module) -> list[list[str]]:
    """Paths of the linears and convolutions, those that share their weights together."""
    found: dict[int, list[str]] = {}
    wanted = set()
    for path, owner in module.named_modules(remove_duplicate=False):
        if isinstance(owner, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Embedding) and path:
            found.setdefault(id(owner.weight), []).append(path)
            if not isinstance(owner, torch.nn.Embedding):
                wanted.add(id(owner.weight))
    return [paths for key, paths in found.items() if key in wanted]
