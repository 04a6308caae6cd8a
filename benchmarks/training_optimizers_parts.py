"""What training_optimizers.py compares with: other 8-bit states, floors, models and texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import small_gpt
import torch
from torch import Tensor, nn

from holdall.training import SGDSaI
from holdall.training.coat_states import decode, encode
from holdall.weights.texts import calibration_text, held_out_text

TEXTS = Path(__file__).parent.parent.parent / "shared" / "data" / "text"


@cache
def text(held: bool = False) -> str:
    file = TEXTS / ("wikitext2-test.txt" if held else "wikitext2-valid.txt")
    if file.exists():
        return file.read_text()
    return held_out_text() if held else calibration_text()


def cosine(steps: int) -> Callable[[int], float]:
    """A tenth of warm-up, then half a cosine down to a tenth."""
    warm = max(steps // 10, 1)

    def rate(t: int) -> float:
        if t < warm:
            return (t + 1) / warm
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (t - warm) / max(steps - warm, 1)))

    return rate


def trained(make: Any, steps: int, seed: int, model: Any = None) -> tuple[Any, Any, float, float]:
    """(model, optimizer, validation loss, mean of the last tenth of training losses), cosine schedule."""
    torch.manual_seed(seed)
    model = model or small_gpt.GPT(d=128, layers=4, heads=4, context=96)
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps))
    losses = []
    for batch in small_gpt.windows(text(), steps, 8, 96, seed):
        loss = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not loss.isfinite():
            return model, optimizer, float("nan"), float("nan")
    with torch.no_grad():
        held = [model(*b).item() for b in small_gpt.windows(text(held=True), 20, 8, 96, 99)]
    tail = losses[-max(steps // 10, 1) :]
    return model, optimizer, sum(held) / len(held), sum(tail) / len(tail)


def large(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return small_gpt.GPT(d=512, layers=10, heads=8, context=128)


def moved(by: int) -> Any:
    """Seed 0's model, each weight moved by a thousandth of itself."""
    torch.manual_seed(0)
    model = small_gpt.GPT(d=128, layers=4, heads=4, context=96)
    made = torch.Generator().manual_seed(by)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 1e-3 * torch.randn(p.shape, generator=made))
    return model


def grouped(x: Tensor, size: int, act: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """act(rows, their largest) on rows of `size`."""
    rows = nn.functional.pad(x.flatten(), (0, -x.numel() % size)).view(-1, size)
    return act(rows, rows.abs().amax(1, keepdim=True).clamp(min=1e-30)).flatten()[: x.numel()].view(x.shape)


def plain_e4m3(x: Tensor) -> Tensor:
    return grouped(x, 128, lambda r, t: (r / t * 448).to(torch.float8_e4m3fn).float() * t / 448)


def plain_e5m2(x: Tensor) -> Tensor:
    return grouped(x, 128, lambda r, t: (r / t * 57344).to(torch.float8_e5m2).float() * t / 57344)


def expanded(x: Tensor) -> Tensor:
    return decode(encode(x, 128), 128)


def int8(x: Tensor) -> Tensor:
    """Linear, a step of a 127th of the group's largest; of a 255th where nothing is less than zero."""
    steps = 127 if (x < 0).any() else 255
    return grouped(x, 128, lambda r, t: (r / t * steps).round() * t / steps)


@cache
def dynamic(signed: bool) -> Tensor:
    """Dettmers' dynamic tree: decades of a leading one, each with as many fractions as bits are left."""
    found, bits = [0.0, 1.0], 7
    for i in range(bits):
        many = 2 ** (i + (0 if signed else 1))
        ends = torch.linspace(0.1, 1, many + 1)
        found += ((ends[:-1] + ends[1:]) / 2 * 10.0 ** (i - bits + 1)).tolist()
    up = torch.tensor(sorted(found))
    return torch.cat([-up[1:].flip(0), up]) if signed else up


def bnb(x: Tensor) -> Tensor:
    """Blocks of 256 on the dynamic tree."""
    codes = dynamic(bool((x < 0).any()))
    middles = (codes[1:] + codes[:-1]) / 2
    return grouped(x, 256, lambda r, t: codes[torch.bucketize((r / t).contiguous(), middles)] * t)


WAYS = {
    "E4M3": (plain_e4m3, plain_e4m3),
    "E4M3 expanded (coat)": (expanded, expanded),
    "E4M3 expanded, v in E5M2": (expanded, plain_e5m2),
    "dynamic int8, blocks of 256": (bnb, bnb),
    "int8 linear": (int8, int8),
}


def errors(moments: list[tuple[Tensor, Tensor]], one: Any, two: Any) -> dict[str, float]:
    """Squared errors over squared sizes, of m, v and m / (sqrt(v) + eps); the direction is also told without what
    became infinite or zero in v (`zeros`: how many did)."""
    sums = torch.zeros(6, dtype=torch.float64)
    for m, v in moments:
        a, b = one(m), two(v)
        wanted, got = m / (v.sqrt() + 1e-8), a / (b.sqrt() + 1e-8)
        for i, (x, y) in enumerate(((a, m), (b, v), (got, wanted))):
            sums[2 * i] += (x - y).double().square().sum()
            sums[2 * i + 1] += y.double().square().sum()
    gone = sum(int(((two(v) == 0) & (v > 0)).sum()) for _, v in moments) / sum(v.numel() for _, v in moments)
    m, v, direction = (math.sqrt(sums[2 * i] / sums[2 * i + 1]) for i in range(3))
    return {"m": m, "v": v, "direction": direction, "v_gone_to_zero": gone}


class Int8AdamW(torch.optim.AdamW):
    """AdamW whose moments pass through linear int8 at each step."""

    def step(self, closure: Any = None) -> Any:
        given = super().step(closure)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].copy_(int8(state[name]))
        return given


class RandomRatios(SGDSaI):
    """The floor: the same ratios, dealt to tensors by chance."""

    def _prepare(self) -> None:
        fresh = not any("ratio" in s for s in self.state.values())
        super()._prepare()
        if fresh:
            held = [s for s in self.state.values() if "ratio" in s]
            order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0)).tolist()
            dealt = [held[i]["ratio"].clone() for i in order]
            for state, ratio in zip(held, dealt, strict=True):
                state["ratio"] = ratio


def ratios(words: str) -> dict[str, float]:
    """How ratios of two first batches agree, and how near they are to roots of sizes."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = small_gpt.GPT(d=128, layers=4, heads=4, context=96)
        optimizer = SGDSaI(model.parameters())
        model(*next(small_gpt.windows(words, 1, 8, 96, seed))).backward()
        optimizer.step()
        found.append(torch.tensor([row["ratio"] for row in optimizer.report()]))
    sizes = torch.tensor([row["size"] for row in optimizer.report()])
    signs = torch.tensor([row["sign"] for row in optimizer.report()])
    return {
        "two_batches": torch.corrcoef(torch.stack(found))[0, 1].item(),
        "with_sizes": torch.corrcoef(torch.stack([found[0], sizes]))[0, 1].item(),
        "sign_factor_least": signs.min().item(), "sign_factor_most": signs.max().item(),
    }  # fmt: skip
