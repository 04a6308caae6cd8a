"""What calibration text says about a model: how large each linear's inputs are, and how much its outputs matter.

The text goes through the full-precision blocks one after the other, so that beside the weights only the hidden
states of the windows and the statistics of one block are held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")

_TINY = 1e-3  # the paper adds it to every scale


@dataclass
class Seen:
    """One linear's inputs: `scale` [n], the mean over windows of the norm over tokens, and `gram` [n, n]."""

    scale: torch.Tensor
    gram: torch.Tensor


@dataclass
class Slopes:
    """Mean squared gradients of the loss: of each linear's outputs [m], of the embedded tokens [n]; token counts."""

    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    embedded: torch.Tensor | None = None
    counts: torch.Tensor | None = None


def windows(model: Model, count: int, length: int, skip: int = 0) -> torch.Tensor:
    """[count, length] token ids, equally spaced over the calibration text; fewer where the text is short."""
    from holdall.weights.texts import calibration_text

    text = calibration_text() if model.calibration is None else model.calibration
    ids = model.tokenizer().encode(text[: 40 * count * length])
    if len(ids) < 2:
        raise BadInput(
            "calibration text", f"{len(ids)} tokens", "at least two tokens; some thousand are better"
        )
    model.check_tokens(ids)
    length = min(length, len(ids))
    count = min(count, max(1, len(ids) // length))
    room = len(ids) - length
    starts = [min(room, (room * i) // max(1, count - 1) + skip) if count > 1 else 0 for i in range(count)]
    return torch.tensor([ids[s : s + length] for s in starts])


class Walk:
    """Takes windows [N, L] through a transformers model block by block."""

    def __init__(self, module: Any, tokens: torch.Tensor, slope_windows: int):
        self.module, self.tokens = module, tokens
        self.blocks = block_list(module)
        self._names = {id(m): n for n, m in module.named_modules()}
        self._kept: list[
            list[torch.Tensor]
        ] = []  # inputs of each block, of the windows that slopes are taken on
        self._slope_windows = min(slope_windows, len(tokens))
        self._tuple = False
        with torch.no_grad():
            self._hidden = [self.first_input(t[None]) for t in tokens]

    @property
    def head_name(self) -> str:
        """The weight that makes the logits; "" for models without."""
        head = _head(self.module)
        return "" if head is None else self._names[id(head)] + ".weight"

    @property
    def hidden_size(self) -> int:
        return int(self._hidden[0].shape[-1])

    def first_input(self, ids: torch.Tensor) -> torch.Tensor:
        def catch(_module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Caught(args, named)

        handle = self.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.module(input_ids=ids, **_no_cache(self.module))
        except _Caught as caught:
            hidden = caught.args_[0] if caught.args_ else caught.named.pop("hidden_states")
            self._rest, self._named = (
                caught.args_[1:],
                caught.named,
            )  # the same for all: windows are equally long
            return hidden
        finally:
            handle.remove()
        raise BadInput("model", type(self.module).__name__, "one whose blocks run")

    def run(self, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        out = block(hidden, *self._rest, **self._named)
        self._tuple = isinstance(out, tuple)
        return out[0] if self._tuple else out

    def statistics(self) -> Iterator[dict[str, Seen]]:
        """For each block, what was seen by each of its linears (by weight name); then for the head, if any."""
        for block in self.blocks:
            self._kept.append(self._hidden[: self._slope_windows])
            with torch.no_grad(), _watch(block, self._names, self.tokens.numel()) as seen:
                self._hidden = [self.run(block, h) for h in self._hidden]
            yield _settled(seen, len(self.tokens))
        head = _head(self.module)
        if head is not None:
            with torch.no_grad(), _watch(head, self._names, self.tokens.numel()) as seen:
                for ids, hidden in zip(self.tokens, self._hidden, strict=True):
                    self._tail(ids[None], hidden)
            yield _settled(seen, len(self.tokens))

    def _tail(self, ids: torch.Tensor, hidden: torch.Tensor) -> Any:
        """The model's output from the last block's, by standing in for every block."""
        stand_in: Callable[..., Any] = lambda *_a, **_k: (hidden,) if self._tuple else hidden  # noqa: E731
        originals = [b.forward for b in self.blocks]
        try:
            for block in self.blocks:
                block.forward = stand_in
            return self.module(input_ids=ids, **_no_cache(self.module))
        finally:
            for block, original in zip(self.blocks, originals, strict=True):
                block.forward = original

    def slopes(self) -> Slopes:
        """Gradients of the next-token loss, backwards through one block at a time; nothing for models without one."""
        found = Slopes(counts=torch.bincount(self.tokens.reshape(-1)))
        head = _head(self.module)
        if head is None or not self._slope_windows:
            return found
        tokens = self.tokens[: self._slope_windows]
        sums: dict[str, torch.Tensor] = {}
        grads = []
        for ids, hidden in zip(tokens, self._hidden, strict=False):
            leaf = hidden.clone().requires_grad_(True)
            with torch.enable_grad():
                logits = self._tail(ids[None], leaf).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            grads.append(torch.autograd.grad(loss, leaf)[0])
            with torch.no_grad():
                wrong = torch.softmax(logits.detach(), -1)
                wrong[torch.arange(len(ids) - 1), ids[1:]] -= 1
                _add(sums, self._names[id(head)] + ".weight", wrong.square_().sum(0))
            del logits, loss, wrong
        for block, inputs in zip(reversed(self.blocks), reversed(self._kept), strict=True):
            grads = [self._back(block, h, g, sums) for h, g in zip(inputs, grads, strict=True)]
        found.outputs = {n: s / tokens.numel() for n, s in sums.items()}
        found.embedded = torch.stack([g.square().sum((0, 1)) for g in grads]).sum(0) / tokens.numel()
        return found

    def _back(
        self, block: Any, hidden: torch.Tensor, grad: torch.Tensor, sums: dict[str, Any]
    ) -> torch.Tensor:
        leaf = hidden.clone().requires_grad_(True)
        handles = []
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                name = self._names[id(module)] + ".weight"

                def watch(_m: Any, _a: Any, out: torch.Tensor, name: str = name) -> None:
                    out.register_hook(lambda g: _add(sums, name, g.square().reshape(-1, g.shape[-1]).sum(0)))

                handles.append(module.register_forward_hook(watch))
        try:
            with torch.enable_grad():
                (back,) = torch.autograd.grad(self.run(block, leaf), leaf, grad)
        finally:
            for handle in handles:
                handle.remove()
        return back


class _Caught(Exception):
    def __init__(self, args_: tuple[Any, ...], named: dict[str, Any]):
        super().__init__()
        self.args_, self.named = args_, dict(named)


def _add(sums: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _no_cache(module: Any) -> dict[str, bool]:
    return {"use_cache": False} if getattr(module.config, "use_cache", None) is not None else {}


def block_list(module: Any) -> Any:
    lists = [m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        raise BadInput("model", type(module).__name__, "a stack of blocks to calibrate on")
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _head(module: Any) -> Any:
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


@contextlib.contextmanager
def _watch(root: Any, names: dict[int, str], tokens: int) -> Iterator[dict[str, Seen]]:
    """Sum norms and second moments of what the linears under `root` are given; equal inputs share one sum."""
    seen: dict[str, Seen] = {}
    last: list[Any] = [None, None]  # the latest input, and who was given it first

    def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        name = names[id(module)] + ".weight"
        if args[0] is last[0]:
            seen[name] = seen[last[1]]
            return
        last[:] = [args[0], name]
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        if name not in seen:
            seen[name] = Seen(torch.zeros(x.shape[1]), torch.zeros(x.shape[1], x.shape[1]))
        seen[name].scale += x.norm(dim=0)
        seen[name].gram.addmm_(x.T, x, alpha=1 / tokens)

    linears = [m for m in root.modules() if isinstance(m, torch.nn.Linear)]
    handles = [m.register_forward_pre_hook(hook) for m in linears]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _settled(seen: dict[str, Seen], count: int) -> dict[str, Seen]:
    done: dict[int, Seen] = {}
    return {n: done.setdefault(id(s), Seen(s.scale / count + _TINY, s.gram)) for n, s in seen.items()}
