"""What each row of each matrix means to the loss: gradients of every calibration window, caught by hooks.

The windows run one by one. A linear's inputs X [T, I] are kept on the way there; on the way back its outputs'
gradients dY [T, O] come by, and what is wanted of the weights' gradient dY^T X is summed at once: autograd is asked
only for the gradient of the embedded tokens, and no gradient of a weight is ever stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.progress import track

if TYPE_CHECKING:
    import torch

    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")

SALIENCE = ("first", "second", "diagonal")
Errors = Callable[[str], Mapping[int, "torch.Tensor"]]  # by a matrix' name: width -> Q(W) - W [O, I]


@dataclass
class Felt:
    """One matrix as the loss feels it. An error e of row o costs about `share[o]` e^T `gram` e.

    gram: [I, I], mean over tokens of x x^T, times the squared gradient of the mean output: per token where it was asked
    to be `weighted`, else on average. share: [O], each output's squared gradient over the mean output's. salience: by
    width, [O], what rounding the row to that width costs, summed over windows; it may fall for some rows.
    """

    gram: torch.Tensor
    share: torch.Tensor
    salience: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass
class Looked:
    """Embedded tokens: squared gradient of each column [I], mean over tokens; how often each row was looked up [V]."""

    slope: torch.Tensor
    counts: torch.Tensor


def feel(
    model: Model,
    tokens: torch.Tensor,
    errors: Errors | None = None,
    *,
    weighted: bool = True,
    kind: str = "first",
) -> tuple[dict[str, Felt], Looked]:
    """Every linear of a language model, the head too, on windows [N, L] of token ids; by weight name.

    errors: rounding errors that salience is wanted for. kind: "first" keeps the first-order term,
    |g.e + (g.e)^2 / 2|; "second" drops it; "diagonal" sums |.| over weights instead of products.
    """
    if len(tokens) == 0 or tokens.shape[1] < 2:
        raise BadInput("calibration", f"windows of shape {tuple(tokens.shape)}", "at least one of two tokens")
    module = model.build()
    if module.get_output_embeddings() is None:
        raise BadInput("model", type(module).__name__, "a language model, to have gradients of its loss")
    watch = _Watch(module, errors, weighted, kind, tokens.shape[1] - 1)
    table: Any = module.get_input_embeddings()
    counts = torch.bincount(tokens.reshape(-1), minlength=table.weight.shape[0]).float()
    slope = torch.zeros(table.weight.shape[1])
    try:
        for ids in track(tokens, "gradients", total=len(tokens)):
            with torch.enable_grad():
                start = _embedded(table, ids).requires_grad_(True)
                named = {"use_cache": False} if hasattr(module.config, "use_cache") else {}
                logits = module(inputs_embeds=start, **named).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
                (back,) = torch.autograd.grad(loss, start)
            del logits, loss
            slope += back[0].square().sum(0) / tokens.numel()
    finally:
        watch.stop()
    return watch.settled(tokens.numel()), Looked(slope, counts)


def _embedded(table: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = table(ids[None])
    return found.detach()


class _Watch:
    """The hooks of all linears, and their sums."""

    def __init__(self, module: Any, errors: Errors | None, weighted: bool, kind: str, positions: int):
        self._errors, self._weighted, self._kind, self._positions = errors, weighted, kind, positions
        self._grams: dict[str, torch.Tensor] = {}
        self._slopes: dict[str, torch.Tensor] = {}
        self._salience: dict[str, dict[int, torch.Tensor]] = {}
        self._handles = []
        for name, part in module.named_modules():
            if isinstance(part, torch.nn.Linear):
                self._handles.append(part.register_forward_hook(self._forward(name + ".weight")))

    def _forward(self, name: str) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1])
            out.register_hook(lambda dy: self._backward(name, x, dy.detach().reshape(-1, dy.shape[-1])))

        return hook

    def _backward(self, name: str, x: torch.Tensor, dy: torch.Tensor) -> None:
        """One window's part of every sum. x [T, I], dy [T, O], of the summed loss."""
        with torch.no_grad():
            squares = dy.square()
            seen = x * squares.mean(1, keepdim=True).sqrt() if self._weighted else x
            _add(self._slopes, name, squares.sum(0))
            if name not in self._grams:
                self._grams[name] = torch.zeros(x.shape[1], x.shape[1])
            self._grams[name].addmm_(seen.T, seen)
            deltas = self._errors(name) if self._errors is not None else {}
            if deltas:
                grad = dy.T @ x / self._positions  # of the mean loss, as the paper has it
                for width, delta in deltas.items():
                    _add(self._salience.setdefault(name, {}), width, salience_of(grad, delta, self._kind))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def settled(self, tokens: int) -> dict[str, Felt]:
        found = {}
        for name, gram in self._grams.items():
            slopes = self._slopes[name] / tokens
            mean = slopes.mean().clamp_min(1e-30)
            scale = 1.0 if self._weighted else float(mean)
            found[name] = Felt(gram.mul_(scale / tokens), slopes / mean, self._salience.get(name, {}))
        return found


def salience_of(grad: torch.Tensor, delta: torch.Tensor, kind: str = "first") -> torch.Tensor:
    """[O], what one window says that the error `delta` [O, I] costs, by the gradient of its loss [O, I]."""
    if kind == "diagonal":
        each = grad * delta
        return (0.5 * each.square() + each).abs().sum(1)
    along = (grad * delta).sum(1)
    return 0.5 * along.square() if kind == "second" else (0.5 * along.square() + along).abs()


def _add(sums: dict[Any, torch.Tensor], key: Any, value: torch.Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
