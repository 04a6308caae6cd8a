"""BitStack: one file of which any number of megabytes is a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.base import WeightCodec
from holdall.weights.coded_file import finite
from holdall.weights.layout import Layout, depths, kept, plan, read_kept
from holdall.weights.model import Model
from holdall.weights.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from holdall.weights.encoder import Encoder
else:
    torch = lazy("torch", extra="weights")

_TIGHT = {"budget": "12%"}  # where every knob matters
_LEAST = "one block of every matrix, and what is never cut"
_ENTRY = 100  # about what one section costs in the header; only the search for the budget begins with it


@dataclass(frozen=True, kw_only=True)
class BitStack(WeightCodec):
    """Cut a model into sorted one-bit blocks; load as many megabytes as you have, and change your mind later.

    Each matrix becomes a sum of blocks (a sign a weight times two thin half-precision factors), and the blocks of
    all matrices lie in one file in the order in which they help most: any prefix of the file is a model. Needs no
    training, minutes of calibration. Poor above about 4.5 bits a weight, where plain rounding wins, and below
    about 1.7, where nothing of this kind answers; matrices of less than some hundred columns pay much for factors.

    Shapes:
        a weight W [m, n] is sum_i S_i * (A_i B_i), S_i [m, n] signs, A_i [m, k], B_i [k, n].
    Cost:
        a block is mn/8 + 2k(m + n) bytes. Encoding: a forward pass over `windows` x `window` tokens, a backward
        pass over `slope_windows`, and for each block some 4 products with W and, for `feedback` and `refit`, about
        (k + 1) m n^2 multiplications. Opened, it holds its packed bytes and one matrix of scratch.
    Knobs:
        levels most blocks a matrix (paper 16); rank k of a block (None: up to `overhead`, and the paper's 16
        without a budget); embeddings "fp16" (paper), "stack", or "auto"; lead, fold, sort, scaling, stretch,
        aim, feedback, refit, damp, windows x window tokens (paper 256 x 2048), slope_windows, seed: see `--help`.
    Differs from the paper:
        1 / scale goes into B (`fold="factor"`), which needs no operator before, works under grouped-query attention
        and costs nothing; "previous" is the paper's way. The rounded A, B are subtracted, not the exact ones.
        Signs are chosen with error feedback through the inputs' second moments and A is then fitted to the outputs
        (`feedback=0, refit=False` is the paper); the first `aim` blocks are chosen together, since no model answers
        from fewer (3 is better from 3 bits on and worse below); magnitudes are stretched, which helps later blocks.
        The sort uses squared gradients times output errors a byte instead of (T - 1) x linears perplexities
        (`sort="perplexity"` is the paper; docs/weights.md compares them). Embeddings join the stack in slabs of
        4096 rows, `lead` blocks ahead of the linears. k follows the shape. Calibration text is the user's.
    Example:
        >>> import torch
        >>> from holdall.weights import BitStack, Model
        >>> w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
        >>> packed = BitStack().encode(Model({"w": w}), "20%")
        >>> back = BitStack().decode(packed).state["w"]
        >>> packed.nbytes <= 0.2 * w.nbytes, float((back - w).norm() / w.norm()) < 0.3
        (True, True)

    Paper: Wang et al., BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments.
    Test: tests/weights/test_bitstack.py
    """

    name: ClassVar[str] = "bitstack"
    brief: ClassVar[Mapping[str, Any]] = {"windows": 4, "window": 128}
    paper: ClassVar[Paper] = Paper(
        71,
        "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments",
        "Wang, Wang, Wang, Zhang, Zhou, Qiu (ICLR 2025)",
        "https://arxiv.org/abs/2410.23918",
    )

    levels: int = knob(16, "most blocks a matrix may have", other=2)
    rank: int | None = knob(
        None, "rank of a block's magnitudes; None follows the shape", paper=16, other=2, at=_TIGHT
    )
    overhead: float = knob(
        0.25, "bytes of factors per byte of signs that the rank may cost", other=0.6, at=_TIGHT
    )
    embeddings: str = knob(
        "auto", "fp16, stack, or auto: stack under a budget", paper="fp16", other="fp16", at={"budget": "30%"}
    )
    lead: int = knob(1, "blocks that tables run ahead of linears", paper=0, other=0, at=_TIGHT)
    scaling: bool = knob(True, "calibrate; off = all inputs count alike", other=False, at=_TIGHT)
    fold: str = knob("factor", "where 1/scale goes: factor or previous", paper="previous", other="previous")
    stretch: float = knob(1.1, "factor on magnitudes", paper=1.0, other=1.0, at=_TIGHT)
    feedback: float = knob(
        1.0, "strength of error feedback between columns, 0 to 1", paper=0.0, other=0.0, at=_TIGHT
    )
    refit: bool = knob(True, "fit A to the outputs", paper=False, other=False, at=_TIGHT)
    aim: int = knob(2, "first blocks that are chosen together", paper=1, other=1, at=_TIGHT)
    damp: float = knob(0.1, "share of the mean second moment added to each", other=1.0, at=_TIGHT)
    sort: str = knob("gain", "gain or perplexity", paper="perplexity", other="perplexity", at=_TIGHT)
    windows: int = knob(16, "calibration windows", paper=256, other=1, at=_TIGHT)
    window: int = knob(512, "tokens a window", unit="tokens", paper=2048, other=64, at=_TIGHT)
    slope_windows: int = knob(4, "windows that gradients are taken on", other=0, at=_TIGHT)
    seed: int = knob(0, "of the subspace iteration", other=1, at=_TIGHT)

    def __post_init__(self) -> None:
        words = {"embeddings": "auto stack fp16", "fold": "factor previous", "sort": "gain perplexity"}
        for field, wanted in words.items():
            if getattr(self, field) not in wanted.split():
                raise BadInput(field, getattr(self, field), wanted.replace(" ", " or "))
        if min(self.levels, self.aim, self.lead + 1, self.windows, self.window - 1) < 1:
            wanted = "levels, aim, windows >= 1, lead >= 0, window >= 2"
            raise BadInput("bitstack", str(self.to_dict()), wanted)

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        from holdall.weights.encoder import Encoder

        limit = self.allowed(x, budget)
        for name, tensor in x.state.items():
            finite(name, tensor)
        tables = self.embeddings == "stack" or (self.embeddings == "auto" and limit is not None)
        rank = 16 if self.rank is None and limit is None else self.rank  # 16: the paper's
        layout = plan(x, rank, self.overhead, tables)
        sections = kept(x, layout)
        first = Packed({}, self._meta(x, layout)).nbytes + sum(a.nbytes + _ENTRY for a in sections.values())
        cheapest = first + sum(p.block_bytes + _ENTRY for p in layout.pieces)
        if limit is not None and cheapest > 2 * limit + 10_000:  # hopeless: say so before the work
            raise BudgetError(limit, cheapest, who="weights.bitstack", why=_LEAST)
        cut = Encoder(self, x, layout, depths(layout, self.levels, self.lead, limit and limit - first))
        if self.fold == "previous":
            sections = kept(Model(cut.state, x.files, x.name), layout)
        return (self._trim(x, layout, sections, cut, limit)).kept(to)

    def decode(self, packed: Packed) -> Model:
        shell, stack = self._open(packed)
        stack.change(None)
        made = {}
        for name, dtype, shape in stack.layout.tensors:
            plain = shell.state.get(name)
            made[name] = torch.zeros(shape, dtype=getattr(torch, dtype)) if plain is None else plain
        stack.fill(made)
        return Model(made, shell.files, shell.name)

    def open(self, packed: Packed, memory: Spend = None) -> torch.nn.Module:
        """Weights stay packed; `module.holdall_stack.change(budget)` loads or frees exactly the difference."""
        from holdall.weights.packed_linear import install

        shell, stack = self._open(packed)
        stack.change(memory)
        module = install(shell, stack.pieces())
        module.__dict__["holdall_stack"] = stack  # beside torch's own bookkeeping: it is no parameter
        return module

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Any]:
        shell, stack = self._open(packed)
        stack.change(memory)
        return shell, stack.pieces()

    def _open(self, packed: Packed) -> tuple[Model, Stack]:
        layout = Layout.of(packed)
        state, files = read_kept(packed, layout)
        original, elements = packed.meta.get("original_bytes"), packed.meta.get("elements")
        if type(original) is not int or type(elements) is not int or min(original, elements) < 0:
            raise CorruptArtefact("the BitStack header", "it does not say how large the original was")
        shell = Model(state, files, str(packed.meta.get("name", "model")))
        return shell, Stack(packed, layout, original, elements)

    def _meta(self, x: Model, layout: Layout) -> dict[str, Any]:
        told = {"room": "weights", "method": self.to_dict(), "name": x.name}
        return {**told, "original_bytes": x.nbytes, "elements": x.elements, **layout.to_meta()}

    def _trim(
        self, x: Model, layout: Layout, sections: dict[str, np.ndarray], cut: Encoder, limit: int | None
    ) -> Packed:
        """As many blocks of the stack as fit, first blocks at least."""
        from holdall.weights.sorting import sort

        stack = [*range(len(layout.pieces)), *sort(cut, x)]
        coming = [iter(blocks) for blocks in cut.blocks]
        blocks = [next(coming[i]) for i in stack]

        def made(count: int) -> Packed:
            arrays = {**sections, **{str(at): blocks[at] for at in range(count)}}
            return Packed(arrays, self._meta(x, Layout(layout.tensors, layout.pieces, stack[:count])))

        if limit is None:
            return made(len(stack))
        low, high = len(layout.pieces), len(stack)
        if (least := made(low).nbytes) > limit:
            raise BudgetError(limit, least, who="weights.bitstack", why=_LEAST)
        while low < high:  # the most blocks whose file fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if made(middle).nbytes <= limit else (low, middle - 1)
        return made(low)
