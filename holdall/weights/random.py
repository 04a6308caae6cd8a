"""Keep weights by lot: what any method must beat at the same number of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model
from holdall.weights.stored import describe, described, file_sections, files_of, raw, section, unraw

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_PAPER_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Random(WeightCodec):
    """Keep a random share of each matrix's weights in half precision and forget the others: the floor.

    Which weights are kept follows from the seed, so no byte goes into positions. It answers nothing below about
    nine tenths of the weights; a method that does not beat it at equal bytes is broken.

    Shapes:
        matrices; everything else is stored as it is.
    Cost:
        two bytes a kept weight.
    Knobs:
        seed, of the lot.
    Differs from the paper:
        there is no paper.
    Example:
        >>> import torch
        >>> from holdall.weights import Model, Random
        >>> packed = Random().encode(Model({"w": torch.ones(50, 40)}), "30%")
        >>> bool(Random().decode(packed).state["w"].sum() < 2000)
        True

    Paper: none.
    Test: tests/weights/test_floors.py
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[Paper] = Paper(0, "A random subset of the weights", "no paper claims it")

    seed: int = knob(0, "which weights are kept", other=1, at={"budget": "25%"})

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(x, budget)
        matrices = [n for n, t in x.state.items() if t.ndim == 2 and t.is_floating_point() and t.numel()]
        total = sum(x.state[n].numel() for n in matrices)
        if limit is None:
            return (self._made(x, matrices, int(total * _PAPER_SHARE), total)).kept(to)
        least = self._made(x, matrices, 0, total).nbytes
        if least > limit:
            raise BudgetError(limit, least, who="weights.random", why="what is not a matrix")
        kept = min(total, max(0, (limit - least) // 2))
        packed = self._made(x, matrices, kept, total)
        while packed.nbytes > limit:  # digits in the header, padding
            kept = max(0, kept - max(8, (packed.nbytes - limit) // 2))
            packed = self._made(x, matrices, kept, total)
        return packed.kept(to)

    def _made(self, x: Model, matrices: list[str], kept: int, total: int) -> Packed:
        arrays: dict[str, Any] = file_sections(x)
        for i, (name, tensor) in enumerate(x.state.items()):
            if name in matrices:
                where = self._lot(i, tensor.numel(), kept, total)
                values = tensor.detach().reshape(-1)[torch.from_numpy(where)].float().clamp(-65504, 65504)
                arrays[f"t/{i}"] = values.half().numpy()
            else:
                arrays[f"t/{i}"] = raw(tensor)
        meta = {"room": "weights", "method": self.to_dict(), **describe(x), "kept": kept, "total": total}
        return Packed(arrays, meta)

    def _lot(self, i: int, count: int, kept: int, total: int) -> np.ndarray:
        """Sorted positions of the weights of tensor i that are kept."""
        rng = np.random.default_rng([self.seed, i])
        return np.sort(rng.permutation(count)[: count * kept // total])

    def decode(self, packed: Packed) -> Model:
        state = {}
        kept, total = packed.meta.get("kept"), packed.meta.get("total")
        if type(kept) is not int or type(total) is not int or not 0 <= kept <= total:
            raise CorruptArtefact("the header", f"{kept} of {total} weights kept")
        for i, (name, dtype, shape) in enumerate(described(packed)):
            array = section(packed, f"t/{i}")
            if array.dtype != np.float16:
                state[name] = unraw(array, dtype, shape)
                continue
            count = int(np.prod([int(v) for v in shape], dtype=object))
            if not dtype.endswith(("float16", "float32", "float64")) or not total or count > total:
                raise CorruptArtefact(f"tensor {name}", "its header does not fit")
            where = self._lot(i, count, kept, total)
            if array.shape != where.shape:
                raise CorruptArtefact(
                    f"tensor {name}", f"{array.size} weights kept where {where.size} were drawn"
                )
            flat = torch.zeros(count)
            flat[torch.from_numpy(where)] = torch.from_numpy(array.astype(np.float32))
            state[name] = flat.reshape(shape).to(getattr(torch, dtype))
        return Model(state, files_of(packed), str(packed.meta.get("name", "model")))
