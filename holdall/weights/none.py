"""Keep every bit: the reference that other methods are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdall.errors import BudgetError
from holdall.kinds import Spend
from holdall.method import Paper
from holdall.packed import Packed
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model
from holdall.weights.stored import describe, described, file_sections, files_of, raw, section, unraw


@dataclass(frozen=True, kw_only=True)
class Nothing(WeightCodec):
    """Store the tensors as they are: the floor that shows what a method's bytes are compared with.

    Exact. It can hold no budget below the original's size.

    Shapes:
        any tensors.
    Cost:
        a copy.
    Knobs:
        none.
    Differs from the paper:
        there is no paper.
    Example:
        >>> import torch
        >>> from holdall.weights import Model, Nothing
        >>> packed = Nothing().encode(Model({"w": torch.ones(2, 3)}))
        >>> Nothing().decode(packed).state["w"].shape
        torch.Size([2, 3])

    Paper: none.
    Test: tests/weights/test_floors.py
    """

    name: ClassVar[str] = "none"
    lossless: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(0, "The original, stored", "no paper claims it")

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(x, budget)
        arrays = {**file_sections(x), **{f"t/{i}": raw(t) for i, t in enumerate(x.state.values())}}
        packed = Packed(arrays, {"room": "weights", "method": self.to_dict(), **describe(x)})
        if limit is not None and packed.nbytes > limit:
            raise BudgetError(limit, packed.nbytes, who="weights.none", why="it drops nothing")
        return packed.kept(to)

    def decode(self, packed: Packed) -> Model:
        told = described(packed)
        state = {
            name: unraw(section(packed, f"t/{i}"), dtype, shape)
            for i, (name, dtype, shape) in enumerate(told)
        }
        return Model(state, files_of(packed), str(packed.meta.get("name", "model")))
