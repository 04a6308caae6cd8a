"""A module in a fixed number of parameters: every weight is read from one shared array through a hash.

    shared = share(module, params=10_000, seed=1)
    optimizer = in_weight_space(torch.optim.AdamW(shared.parameters(), lr=1e-3), shared)

`shared` trains in your own loop; its parameters, gradients and optimiser state have the size of the array. `plain`
gives an ordinary module back. Sharing saves memory, not arithmetic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from holdall.budget import apportion
from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.weights.sharing_map import Map, Segment
from holdall.weights.sharing_store import Sharing

if TYPE_CHECKING:
    import torch

    M = TypeVar("M", bound=torch.nn.Module)
else:
    torch = lazy("torch", extra="weights")
    M = TypeVar("M")

NAME = "shared_weights"  # of the array among the module's parameters


def share(
    module: M,
    params: int,
    seed: int = 0,
    *,
    map: str = "shift",
    chunk: int = 64,
    sigma: float = 1.0,
    scaling: str = "mean",
    biases: bool = False,
    keep: tuple[str, ...] = (),
    known: Mapping[str, tuple[float, int]] | None = None,
) -> M:
    """A copy of the module that reads its weights from an array of `params` numbers, registered as `shared_weights`.

    Shared are all tensors of two and more dimensions outside norms and recurrent layers, but not those named in `keep`;
    with `biases` also the biases beside them. params: at most their number, where the copy is the given module exactly.
    Each tensor keeps the spread that it has in the given module, by a lambda of its own. sigma: spread of the array.
    scaling: of gradients: "mean", "count" or "none". Rows of padding that are zero stay zero. known: name -> (lambda,
    that row or -1), from a file.
    """
    from holdall.weights.sharing_modules import attach, attached

    if any(attached(m) for m in module.modules()) or not sigma > 0:
        raise BadInput(
            "module to share, sigma", f"{type(module).__name__}, {sigma}", "an ordinary one, above 0"
        )
    tensors = shareable(module, biases, keep)
    total = sum(t.numel() for t in tensors.values())
    if type(params) is not int or not 0 < params <= total:
        raise BadInput("params", str(params), f"1 to {total}, the weights that can be shared")
    rule = Map(map, params, chunk, seed)
    known = known or {n: (spread(t) / sigma, _padding(module, t)) for n, t in tensors.items()}
    if (
        params == total
    ):  # powers of two take nothing off a number: training is then as without sharing, bit by bit
        known = {n: (2.0 ** round(math.log2(v)), blank) for n, (v, blank) in known.items()}
    segments = laid_out(tensors, known, rule)
    psi = torch.nn.Parameter(torch.zeros(params, device=next(iter(tensors.values())).device))
    sharing = Sharing(psi, rule, segments, scaling)
    sharing.start(tensors)
    spare = {id(t): torch.nn.Parameter(torch.zeros(0)) for t in tensors.values()}  # these are not copied
    made = copy.deepcopy(module, spare)
    for path, names in _places(module, {id(t): n for n, t in tensors.items()}):
        attach(made.get_submodule(path), sharing, {k: segments[n] for k, n in names.items()})
    made.register_parameter(NAME, psi)
    return made


def plain(module: M) -> M:
    """A copy with ordinary weights of its own, as a module that never heard of sharing."""
    from holdall.weights.sharing_modules import attached, detach

    made = copy.deepcopy(module)
    own: dict[str, torch.nn.Parameter] = {}
    for m in made.modules():
        if attached(m):
            detach(m, own)
    made._parameters.pop(NAME, None)
    return made


def sharing_of(module: torch.nn.Module) -> Sharing:
    found = next((m.__dict__["_sharing"] for m in module.modules() if "_sharing" in m.__dict__), None)
    if found is None:
        raise BadInput("module", type(module).__name__, "one that `share` made")
    given: Sharing = found
    return given


def in_weight_space(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser, with steps of the shared array as long as they would be for the weights themselves.

    Adam and its kin step by the rate whatever the gradient's size, which for entries that stand for lambda * psi is
    lambda times too long. Decay needs nothing: weights shrink by the factor by which psi does. SGD stays as it is.
    """
    sharing = sharing_of(module)
    loads, squares = sharing.loads(), sharing.squares()
    root = np.sqrt(np.divide(squares, loads, where=squares > 0, out=np.ones_like(squares)))
    spread = torch.from_numpy(root).float()
    psi, power = sharing.psi, -1 if sharing.scaling == "none" else 1

    def before(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if args[1:] or named.get("closure") is not None:  # args[0] is the optimiser
            raise BadInput("step", "a closure", "none where weights are shared")
        with torch.no_grad():
            psi.mul_(spread.to(psi))
            if psi.grad is not None:
                psi.grad.mul_(spread.to(psi) ** power)

    def after(*_: Any) -> None:
        with torch.no_grad():
            psi.div_(spread.to(psi))
            if psi.grad is not None:
                psi.grad.div_(spread.to(psi) ** power)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


def shareable(
    module: torch.nn.Module, biases: bool, keep: tuple[str, ...] = ()
) -> dict[str, torch.nn.Parameter]:
    """name -> tensor of what can be shared; a tensor of several names has the first."""
    found: dict[int, tuple[str, torch.nn.Parameter]] = {}
    for path, part in module.named_modules():
        if type(part).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d")) or isinstance(
            part, torch.nn.RNNBase
        ):
            continue
        own = {k: p for k, p in part._parameters.items() if p is not None and p.is_floating_point()}
        wide = {k for k, p in own.items() if p.ndim > 1 and p.numel()}
        for key, p in own.items():
            name = f"{path}.{key}" if path else key
            if name not in keep and (key in wide or (biases and wide and "bias" in key and p.numel())):
                found.setdefault(id(p), (name, p))
    kept = {id(p) for n, p in module.named_parameters(remove_duplicate=False) if n in keep}
    tensors = {name: t for i, (name, t) in found.items() if i not in kept}
    if not tensors:
        raise BadInput("module", type(module).__name__, "one with matrices or convolutions to share")
    return tensors


def spread(tensor: torch.Tensor) -> float:
    """Root of the mean square; of a tensor of zeros what a layer of its shape would start with."""
    found = float(tensor.detach().double().square().mean().sqrt())
    return found or (3 * tensor[0].numel()) ** -0.5


def laid_out(
    tensors: Mapping[str, torch.Tensor], known: Mapping[str, tuple[float, int]], rule: Map
) -> dict[str, Segment]:
    """One after the other; with the map `local` each has a part of psi that is as large as it is itself."""
    counts, local = [t.numel() for t in tensors.values()], rule.kind == "local"
    sizes = apportion(rule.params, counts, [1] * len(counts)) if local else [rule.params] * len(counts)
    made, start, base = {}, 0, 0
    for (name, t), size in zip(tensors.items(), sizes, strict=True):
        scale, blank = known[name]
        dtype = str(t.dtype).removeprefix("torch.")
        made[name] = Segment(name, tuple(t.shape), start, float(scale), base, size, dtype, blank)
        start, base = start + t.numel(), base + size if local else 0
    return made


def _padding(module: torch.nn.Module, table: torch.Tensor) -> int:
    """The row of an embedding's table that stands for padding and is zero, or -1."""
    for part in module.modules():
        row = part.padding_idx if isinstance(part, torch.nn.Embedding) and part.weight is table else None
        if row is not None and not bool(table[row].any()):
            return int(row)
    return -1


def _places(module: torch.nn.Module, names: Mapping[int, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(path of a module, its parameter -> the name of the tensor) where tensors are shared, tied ones included."""
    for path, part in list(module.named_modules()):
        held = {k: names[id(p)] for k, p in part._parameters.items() if id(p) in names}
        if held:
            yield path, held
