"""SGD-SaI: momentum SGD whose tensors keep the learning rates that their first gradient gave them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from holdall.errors import BadInput
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.training.optimizer import TorchOptimizer, checked, gradient_of, number

torch = lazy("torch", extra="training")
RULES = ("gsnr", "size")


class SGDSaI(TorchOptimizer):
    """Trains transformers with half of AdamW's state: momentum SGD, each tensor with one rate fixed at the start.

    At the first step each tensor (or each of its `blocks`) gets the ratio of its gradient's norm to its gradient's
    deviation, over the largest such ratio. It stays for the whole run, in the state dict too, and scales the learning
    rate; nothing else adapts. `report()` says where the ratios come from: mostly from sizes. Learning rates are ten to
    a thousand times AdamW's. It is poor where scales of gradients change later, and early in training.

    Shapes:
        parameters and momentum of any shape; ratios float32 [blocks].
    Cost:
        4 bytes a parameter for states, AdamW's 8, and one number for each block; one pass in place.
    Knobs:
        momentum (paper 0.9); weight_decay, which no ratio scales; eps, added to deviations; blocks, equal parts of the
        first axis that have ratios of their own (heads of a projection; 0: each row), where an axis has as many; rule,
        gsnr, or size: the root of a block's size over the largest, which needs no gradient; maximize as torch's.
        foreach and fused are taken and change nothing. reduce: given float64 [blocks, 3] (how many numbers, their sum
        and their squares' sum) of this worker's parts of tensors, gives those of whole tensors.
    Differs from the paper:
        A block with one number, or with one gradient everywhere, has no deviation, and counts as the root of its size
        where the reference gives zero (it never trains) or a ratio that dwarfs all others. A tensor whose first
        gradient is all zero gets its ratio when another comes: that of a tensor of its shape, else its own over the
        stored largest. Deviations are found from sums in float64, as workers would share them.
    Example:
        >>> import torch
        >>> from holdall.training import SGDSaI
        >>> model = torch.nn.Linear(100, 100)
        >>> optimizer = SGDSaI(model.parameters(), lr=0.1)
        >>> loss = model(torch.randn(8, 100, generator=torch.Generator().manual_seed(0))).square().mean()
        >>> loss.backward(); optimizer.step()
        >>> [round(row["ratio"], 2) for row in optimizer.report()]
        [1.0, 0.1]

    Paper: Xu et al., No More Adam: Learning Rate Scaling at Initialization is All You Need.
    Test: tests/training/test_sgd_sai.py
    """

    name: ClassVar[str] = "sgd_sai"
    paper: ClassVar[Paper] = Paper(
        76,
        "No More Adam: Learning Rate Scaling at Initialization is All You Need",
        "Xu, Xiang, Cai, Wen (2024)",
        "https://arxiv.org/abs/2412.11768",
    )
    most_bytes: ClassVar[float] = 4.2
    knobs: ClassVar[Mapping[str, Any]] = {
        "momentum": knob(0.9, "how much of the momentum stays at a step", other=0.5),
        "weight_decay": knob(1e-2, "share of weights taken away, times the learning rate", other=0.3),
        "eps": knob(1e-8, "added to deviations", other=1.0),
        "blocks": knob(1, "parts of the first axis with ratios of their own; 0: rows", other=0),
        "rule": knob("gsnr", "gsnr, or size: ratios without a gradient", other="size"),
    }

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        eps: float = 1e-8,
        *,
        blocks: int = 1,
        rule: str = "gsnr",
        maximize: bool = False,
        reduce: Callable[[Any], Any] | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        said = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
            "maximize": maximize,
        }
        self._reduce = reduce
        super().__init__(params, {**said, "blocks": blocks, "rule": rule, "largest": 0.0})

    def fits(self, group: Mapping[str, Any]) -> None:
        checked(
            lr=(group["lr"], number(group["lr"]) >= 0, "zero or more"),
            momentum=(group["momentum"], 0 <= group["momentum"] < 1, "from 0 to below 1"),
            weight_decay=(group["weight_decay"], group["weight_decay"] >= 0, "zero or more"),
            eps=(group["eps"], group["eps"] >= 0, "zero or more"),
            blocks=(group["blocks"], group["blocks"] >= 0, "one or more, or 0 for rows"),
            rule=(group["rule"], group["rule"] in RULES, " or ".join(RULES)),
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._prepare()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._advance(p, group)
        return loss

    def _advance(self, p: Any, group: Mapping[str, Any]) -> None:
        """m = beta m + (1 - beta) g, starting with g; p = p (1 - lr wd) - lr r m."""
        from holdall.training.sgd_states import advance

        state, g = self.state[p], gradient_of(p)
        beta, lr, sign = group["momentum"], number(group["lr"]), -1.0 if group["maximize"] else 1.0
        keep, decay, fresh = (1 - beta) * sign, 1 - lr * group["weight_decay"], "momentum_buffer" not in state
        if fresh:
            state["momentum_buffer"] = torch.zeros_like(p)
            beta, keep = 0.0, sign
        advance(p, g, state["momentum_buffer"], state["ratio"] * lr, beta, keep, decay)

    def _prepare(self) -> None:
        """Ratios of tensors that have none yet, when their first gradient that is not all zero is there."""
        from holdall.training.sgd_states import gsnr, sums

        new = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p].get("ratio", torch.zeros(1)).any():
                    new.append((p, group, sums(gradient_of(p), group["blocks"])))
        if not new:
            return
        counted = torch.cat([s for *_, s in new])
        shared = counted if self._reduce is None else self._reduce(counted)
        parts = shared.split([len(s) for *_, s in new])
        found = [
            (p, group, gsnr(s, group["eps"], group["rule"]))
            for (p, group, _), s in zip(new, parts, strict=True)
        ]
        largest = max(g["largest"] for g in self.param_groups) or max(
            (float(r.max()) for *_, r in found), default=0.0
        )
        like = {(p.shape, r.shape): r for p, r in self._held() if r.any()}
        for p, _, own in found:
            late = "ratio" in self.state[p] and (p.shape, own.shape) in like and bool(own.any())
            ratio = like[p.shape, own.shape].clone() if late else own / largest if largest else own
            self.state[p]["ratio"] = ratio.float().to(p.device)
        for group in self.param_groups:
            group["largest"] = largest

    def _held(self) -> list[tuple[Any, Any]]:
        return [(p, s["ratio"]) for p, s in self.state.items() if "ratio" in s]

    def report(self) -> list[dict[str, Any]]:
        """Of each tensor: its shape, the mean ratio, and its two factors: size, root(n / largest n), and sign, how
        far a common sign of the gradients lifts it above that (in the unit of the largest ratio)."""
        held = self._held()
        if not held:
            return []
        most = max(p.numel() / len(r) for p, r in held)
        rows = []
        for p, r in held:
            size = math.sqrt(p.numel() / len(r) / most)
            mean = float(r.mean())
            rows.append(
                {"shape": list(p.shape), "ratio": mean, "size": size, "sign": mean / size if size else 0.0}
            )
        return rows

    def taken(self, p: Any, saved: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
        from holdall.training.sgd_states import blocks_of

        told = {}
        if "momentum_buffer" in saved:
            if saved["momentum_buffer"].shape != p.shape:
                raise BadInput(
                    "state momentum_buffer", str(list(saved["momentum_buffer"].shape)), f"{list(p.shape)}"
                )
            told["momentum_buffer"] = saved["momentum_buffer"].to(p.device, p.dtype)
        if "ratio" in saved:
            if saved["ratio"].shape != (blocks_of(p, group["blocks"]),):
                raise BadInput(
                    "state ratio", str(list(saved["ratio"].shape)), f"[{blocks_of(p, group['blocks'])}]"
                )
            told["ratio"] = saved["ratio"].to(p.device)
        return told
