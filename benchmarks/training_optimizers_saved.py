"""What training_optimizers.py trains and fine-tunes, and what autograd keeps of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import small_gpt
import torch
from torch import Tensor, nn
from training_optimizers_parts import text, trained

from holdall.meter import Meter
from holdall.training import SGDSaI, coat_, saved_bytes


def rows(case: Any, kind: torch.dtype) -> Iterator[tuple[str, dict[str, float]]]:
    """What autograd keeps of layers and of all, gradients, peak and time, plain and with coat_."""
    name, model, run, layers = case
    plain = copy.deepcopy(model).to(kind)
    loss, wanted = slopes(plain, run)
    usual, whole = (saved_bytes(partial(act, plain), plain) for act in (layers, run))
    for told, named in (("", {}), (", slopes", {"slopes": True}), (", flow", {"slopes": True, "flow": True})):
        coated = coat_(copy.deepcopy(plain), **named)
        got, found = slopes(coated, run)
        kept, all_kept = (saved_bytes(partial(act, coated), coated) for act in (layers, run))
        yield f"{name}, {str(kind)[6:]}{told}", {
            "layers_mb": usual / 1e6, "layers_less": usual / kept, "with_logits_less": whole / all_kept,
            "cosine": torch.cosine_similarity(wanted, found, 0).item(), "loss_off": got / loss - 1,
            **resident(plain, coated, run),
        }  # fmt: skip


def slopes(model: Any, run: Any) -> tuple[float, Tensor]:
    model.zero_grad()
    loss = run(model)
    loss.backward()
    return loss.item(), torch.cat([p.grad.double().flatten() for p in model.parameters()])


def resident(plain: Any, coated: Any, run: Any) -> dict[str, float]:
    """Resident memory at the peak of forward and backward, and CPU time, of one beside the other."""
    found = []
    for model in (plain, coated):
        model.zero_grad(set_to_none=True)
        with Meter() as m:
            run(model).backward()
        found.append(m)
        model.zero_grad(set_to_none=True)
    a, b = found
    return {
        "peak_mb": b.peak_bytes / 1e6,
        "peak_less": a.peak_bytes / b.peak_bytes,
        "time": b.cpu_seconds / a.cpu_seconds,
    }


def models() -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, a model with some training, its loss, its layers alone)"""
    ids, wanted = next(small_gpt.windows(text(), 1, 8, 96, 5))
    small = trained(lambda ps: torch.optim.AdamW(ps, 1e-3), 200, 0)[0]
    yield "GPT 0.9M", small, lambda m: m(ids, wanted), lambda m: m(ids)
    torch.manual_seed(0)
    deep = small_gpt.GPT(d=512, layers=6, heads=8, context=128)
    long, after = next(small_gpt.windows(text(), 1, 16, 128, 5))
    yield "GPT 19M, random", deep, lambda m: m(long, after), lambda m: m(long)
    model, words = smollm2()
    block = words[:256].view(1, 256)
    yield "SmolLM2-135M", model, lambda m: m(input_ids=block, labels=block).loss, lambda m: m.model(block)


def smollm2() -> tuple[Any, Tensor]:
    from holdall.weights import Model

    told = Model.read("smollm2")
    ids = torch.tensor(told.tokenizer().encode(text()[:60_000]))
    return told.build(torch.float32).train().requires_grad_(True), ids


class LoRA(nn.Module):
    """A frozen linear layer beside two thin ones that learn."""

    def __init__(self, inner: nn.Linear, rank: int = 8):
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inner.in_features) / math.sqrt(inner.in_features))
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.T @ self.up.T


TUNERS = {
    "AdamW 1e-3": (lambda ps: torch.optim.AdamW(ps, 1e-3), False),
    "AdamW 3e-3": (lambda ps: torch.optim.AdamW(ps, 3e-3), False),
    "sgd_sai 1": (lambda ps: SGDSaI(ps, 1.0, weight_decay=0.0), False),
    "sgd_sai 10": (lambda ps: SGDSaI(ps, 10.0, weight_decay=0.0), False),
    "AdamW 1e-3, coat_": (lambda ps: torch.optim.AdamW(ps, 1e-3), True),
}


def tuned(how: tuple[Any, bool], steps: int) -> dict[str, float]:
    make, narrow = how
    model, ids = smollm2()
    model.requires_grad_(False)
    torch.manual_seed(0)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, LoRA(getattr(layer.self_attn, name)))
    if narrow:
        coat_(model)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    made, losses = torch.Generator().manual_seed(0), []
    held = ids[-1024:].view(8, 128)
    for _ in range(steps):
        at = int(torch.randint(len(ids) - 1024 - 128, (1,), generator=made))
        block = ids[at : at + 128].view(1, 128)
        loss = model(input_ids=block, labels=block).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        end = model(input_ids=held, labels=held).loss.item()
    return {"steps": steps, "training": sum(losses[-20:]) / 20, "held_out": end}
