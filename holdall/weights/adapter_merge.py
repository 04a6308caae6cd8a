"""Adapters of queries and values folded into the weights that they change. Imported only where torch is."""

from __future__ import annotations

from typing import Any

import torch

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.packed import Packed
from holdall.verbs import method_of
from holdall.weights.adapter_linear import Parallel
from holdall.weights.adapter_modules import Adapters, adapters_of
from holdall.weights.model import Model
from holdall.weights.none import Nothing


def merged(model: Model, adapted: torch.nn.Module) -> Model:
    """The model with what adapters add in its own matrices. adapted: what `BinaryAdapters.load` gave for its module."""
    adapters = adapters_of(adapted)
    refuse_what_bends(adapters)
    state, owners = dict(model.state), dict(adapted.named_modules())
    for adapter, (spot, path, _, _) in zip(adapters.beside, adapters.places.each(adapted), strict=True):
        assert isinstance(adapter, Parallel)
        more = adapter.up.effective().detach() @ adapter.down.effective().detach() * adapter.scale
        state[f"{path}.weight"] = _added(state, f"{path}.weight", more, spot.start, owners[path])
    if adapters.head is not None and adapters.learned_head is not None:
        state[f"{adapters.head}.weight"] = adapters.learned_head.effective().detach()
        bias = f"{adapters.head}.bias"  # the head that learned has none
        if bias in state:
            state[bias] = torch.zeros_like(state[bias])
    return type(model)(state, model.files, model.name, model.calibration)


def write_merged(where: str, adapted: torch.nn.Module, to: str, budget: Spend = None) -> None:
    """Merge into the model at `where`, and write it as it was packed there, or plain.

    budget: of a packed one; None: the bytes of the file at `where` and 2 % more, since rounded anew it codes otherwise.
    """
    refuse_what_bends(adapters_of(adapted))  # before the whole model is read
    found = merged(Model.read(where), adapted)
    if not to.lower().endswith(".hold"):
        found.write(to)
        return
    method: Any = Nothing()
    if where.lower().endswith(".hold"):
        with Packed.open(where) as packed:
            method = method_of(packed, where)
            budget = packed.nbytes * 102 // 100 if budget is None else budget
    method.encode(found, budget, to=to)


def refuse_what_bends(adapters: Adapters) -> None:
    if adapters.recipe.placement != "lora":
        told = f"adapters of the placement {adapters.recipe.placement}"
        raise BadInput(
            "merge", told, "placement lora: a ReLU beside an MLP is no matrix; keep the adapter beside it"
        )


def _added(state: dict[str, Any], name: str, more: torch.Tensor, start: int, owner: Any) -> torch.Tensor:
    if name not in state:
        raise BadInput("model", f"no {name}", "the model that the adapter was made for")
    weight = state[name].clone()
    rows = (
        weight.T if type(owner).__name__ == "Conv1D" else weight
    )  # GPT-2 keeps its matrices the other way round
    rows[start : start + len(more)] += more.to(weight.dtype)
    return weight
