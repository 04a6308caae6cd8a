"""Where adapters go: the blocks of a module, and in each block what they read and what they add to.

Torch modules of any make are looked through by the names that people give to the parts of a block. Imported only where
torch is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from holdall.errors import BadInput, CorruptArtefact
from holdall.weights.adapter_linear import first, numbers

_WHOLE = ("mlp", "feed_forward", "feedforward", "ffn", "ff")
_HALVES = (("intermediate", "output.dense"), ("fc1", "fc2"), ("linear1", "linear2"), ("lin1", "lin2"))
_AFTER = "post_feedforward_layernorm"  # Gemma norms what its MLP gives, before it is added
_PAIRS = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("to_q", "to_v"), ("q", "v"))
_FUSED = ("qkv", "c_attn", "in_proj")  # queries, keys and values in one matrix, one below the other
_HEADS = ("head", "classifier", "score", "fc", "heads")


@dataclass(frozen=True)
class Spot:
    """In each block: the input of `source`, [.., columns], is read; `rows` outputs of `sink` from `start` on grow."""

    source: str
    sink: str
    start: int
    columns: int
    rows: int


@dataclass(frozen=True)
class Places:
    """A stack of blocks by its path, and the spots that each of them has."""

    stack: str
    blocks: int
    spots: tuple[Spot, ...]

    def each(self, module: torch.nn.Module) -> Iterator[tuple[Spot, str, torch.nn.Module, torch.nn.Module]]:
        """(spot, path of the sink, source, sink), block by block; CorruptArtefact where there is no such module."""
        stack = reached(module, self.stack)
        if not isinstance(stack, torch.nn.ModuleList | torch.nn.Sequential) or len(stack) != self.blocks:
            raise CorruptArtefact("an adapter", f"{self.blocks} blocks at {self.stack} of another module")
        for name, block in stack.named_children():
            for spot in self.spots:
                path = ".".join(part for part in (self.stack, name, spot.sink) if part)
                yield spot, path, reached(block, spot.source), reached(block, spot.sink)


def reached(module: torch.nn.Module, path: str) -> torch.nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as fault:
        raise CorruptArtefact("an adapter", f"made for another module ({fault})") from None


def found(module: torch.nn.Module, placement: str, run: Callable[[], object]) -> Places:
    """The places in a module. run: sends one batch through it, which tells the widths and who feeds whom."""
    path, stack = _stack(module)
    block: Any = next(stack.children())
    pairs = _mlp(block) if placement == "adaptformer" else _attention(block)
    if not pairs:
        wanted = "an MLP in each" if placement == "adaptformer" else "linears for queries and values in each"
        raise BadInput("module", f"blocks of {type(block).__name__}", f"blocks with {wanted}")
    parallel = placement == "adaptformer"
    seen = _Watch(block, pairs, parallel)
    try:
        with torch.no_grad():
            run()
    finally:
        seen.close()
    spots = [
        Spot(seen.feeder.get(source, source), sink, start, seen.columns[source], rows)
        for source, sink in pairs for start, rows in _parts(sink, seen.rows[sink], parallel)
    ]  # fmt: skip
    return Places(path, len(list(stack.children())), tuple(spots))


def _ends(path: str, names: tuple[str, ...]) -> bool:
    return path.rpartition(".")[2] in names


def _parts(sink: str, rows: int, parallel: bool) -> list[tuple[int, int]]:
    """(first output, how many) of what a sink gives that adapters add to."""
    if parallel or not _ends(sink, _FUSED):
        return [(0, rows)]
    if rows % 3:
        raise BadInput("module", f"{rows} outputs of {sink}", "queries, keys and values of equal width")
    return [(0, rows // 3), (rows // 3 * 2, rows // 3)]


def _stack(module: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """The blocks: the list with most numbers in it, whose members are alike."""
    lists = [(name, m) for name, m in module.named_modules() if _alike(m)]
    if not lists:
        raise BadInput("module", type(module).__name__, "one with a stack of blocks (ModuleList, Sequential)")
    return max(lists, key=lambda pair: numbers(pair[1]))


def _alike(module: torch.nn.Module) -> bool:
    """Whether it is a list of parts of one kind, which have parts themselves."""
    members = list(module.children())
    if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential) or not members:
        return False
    return len({type(m) for m in members}) == 1 and next(members[0].children(), None) is not None


def _mlp(block: torch.nn.Module) -> list[tuple[str, str]]:
    names = dict(block.named_modules())
    for name in _WHOLE:
        if name in names:
            return [(name, _AFTER if _AFTER in names else name)]
    return [(a, b) for a, b in _HALVES if a in names and b in names][:1]


def _attention(block: torch.nn.Module) -> list[tuple[str, str]]:
    """Each linear that makes queries or values, read and added to."""
    for pair in (*_PAIRS, *((name,) for name in _FUSED)):
        paths = [path for path, _ in block.named_modules() if _ends(path, pair)]
        if paths:
            return [(path, path) for path in paths]
    return []


class _Watch:
    """What one pass shows of a block: widths, and for a norm that gives a source its input, whether what that norm
    reads is the stream that the sink's outputs are added to. Adapters read the stream."""

    def __init__(self, block: torch.nn.Module, pairs: list[tuple[str, str]], norms: bool):
        self.columns: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.feeder: dict[str, str] = {}
        self._normed: dict[
            str, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # by name: what went in, what came out
        self._added: dict[str, torch.Tensor] = {}  # by source
        self._handles = [block.register_forward_hook(self._whole)]
        for name, child in block.named_children() if norms else ():
            if "norm" in type(child).__name__.lower():
                self._handles.append(child.register_forward_hook(self._norm(name), with_kwargs=True))
        for source, sink in pairs:
            before, after = block.get_submodule(source), block.get_submodule(sink)
            self._handles.append(before.register_forward_pre_hook(self._into(source), with_kwargs=True))
            self._handles.append(after.register_forward_hook(self._outof(source, sink)))

    def _norm(self, name: str) -> Callable[..., None]:
        def hook(_module: object, given: Any, named: Any, out: torch.Tensor) -> None:
            self._normed[name] = (first(given, named), out)

        return hook

    def _into(self, source: str) -> Callable[..., None]:
        def hook(_module: object, given: Any, named: Any) -> None:
            x = first(given, named)
            self.columns[source] = int(x.shape[-1])
            feeders = [name for name, (_, out) in self._normed.items() if out is x]
            self.feeder.update((source, name) for name in feeders)

        return hook

    def _outof(self, source: str, sink: str) -> Callable[..., None]:
        def hook(_module: object, _given: object, out: object) -> None:
            if not isinstance(out, torch.Tensor):
                raise BadInput(
                    "module", f"{sink} that gives a {type(out).__name__}", "one that gives a tensor"
                )
            self.rows[sink], self._added[source] = int(out.shape[-1]), out

        return hook

    def _whole(self, _module: object, _given: object, out: Any) -> None:
        """The block is over: norms whose input is not what was added to are after the sum, and part of the stream."""
        out = out[0] if isinstance(out, tuple) else out
        for source, name in list(self.feeder.items()):
            read, added = self._normed[name][0].flatten(), self._added[source].flatten()
            if len(read) != len(added) or not torch.allclose(
                read + added, out.flatten(), rtol=1e-3, atol=1e-4
            ):
                del self.feeder[source]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._normed.clear()
        self._added.clear()


def head_of(module: torch.nn.Module) -> str | None:
    """The path of a classifier's last linear; a language model has none."""
    for name in _HEADS:
        top = getattr(module, name, None)
        if isinstance(top, torch.nn.Module):
            linears = [n for n, m in top.named_modules() if hasattr(m, "in_features")]
            if linears:
                return f"{name}.{linears[-1]}".removesuffix(".")
    return None
