"""COAT: AdamW whose moments are 8-bit floats; `coat_activations` has the half that is done to modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from holdall.errors import BadInput
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.training.optimizer import TorchOptimizer, checked, gradient_of, number

torch = lazy("torch", extra="training")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class COATAdamW(TorchOptimizer):
    """AdamW in a quarter of its memory: both moments are 8-bit floats whose range is stretched over what they hold.

    Put it in the place of `torch.optim.AdamW`: same arguments, same loop, and a `state_dict` that loads without pickle,
    also one that AdamW itself saved. On a processor one kernel reads, updates and writes a group of 128 numbers at a
    time, so that no moment is ever whole; elsewhere, and for float64, torch's own operations do the same. Weights stay
    in their own type. `coat_(module)` does the other half: it lets autograd keep FP8, too. Where numbers of one
    group are many octaves apart (embeddings of rare words beside common ones) codes are coarse.

    Shapes:
        parameters of any shape; moments float8 of the same, largest numbers float32 and exponents uint8 [N / 128].
    Cost:
        2.08 bytes a parameter for states, AdamW's 8; about three times the fused AdamW's time on one core (it is bound
        by memory, this by arithmetic). Tensors of 500,000 numbers and more are shared among torch's threads.
    Knobs:
        group, numbers that share a range (paper 128), whole sixteens; expand, whether codes are stretched over the
        range of their group (without: plain FP8); steady (paper: not), second moments rounded by chance, at exponents
        that stay while they fit, as a thousandth a step is less than a code; betas, eps, weight_decay as AdamW's.
        maximize as AdamW's; foreach and fused are taken and change nothing.
    Differs from the paper:
        A group stores its largest number and k, not scale, k and centre: the centre cancels out, 5 bytes say what 12
        did; they stay float32, as in bfloat16 a decay by 0.999 would round away. The smallest number is that of those
        that are not zero; zeros stay zeros, and nothing else becomes one. Numbers under 2^-126 count as zero. Codes
        made again from what they stand for are the same only where k is: the smallest number was rounded. `coat_`
        saves FP8 and calculates as before, so no tensor core gains; attention is done again from its kept inputs.
        `slopes` (output gradients in E5M2) and `flow` (calculate from what is kept) save nothing more and are off.
    Example:
        >>> import torch
        >>> from holdall.training import COATAdamW
        >>> model = torch.nn.Linear(256, 64)
        >>> optimizer = COATAdamW(model.parameters(), lr=1e-2)
        >>> for _ in range(3):
        ...     loss = (model(torch.ones(4, 256)) - 1).square().mean()
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
        >>> state = optimizer.state[model.weight]
        >>> state["exp_avg"].dtype, round(sum(x.nbytes for x in state.values()) / model.weight.numel(), 2)
        (torch.float8_e4m3fn, 2.08)
        >>> optimizer.moments(model.weight)[0].shape
        torch.Size([64, 256])

    Paper: Xi et al., COAT: Compressing Optimizer states and Activation for Memory-Efficient FP8 Training.
    Test: tests/training/test_coat.py
    """

    name: ClassVar[str] = "coat"
    paper: ClassVar[Paper] = Paper(
        98,
        "COAT: Compressing Optimizer states and Activation for Memory-Efficient FP8 Training",
        "Xi, Cai, Zhu, Lu, Keutzer, Chen, Han (ICLR 2025)",
        "https://arxiv.org/abs/2410.19313",
    )
    most_bytes: ClassVar[float] = 2.2
    knobs: ClassVar[Mapping[str, Any]] = {
        "group": knob(128, "numbers that share a range, whole sixteens", unit="numbers", other=32),
        "expand": knob(True, "stretch codes over the range of their group", other=False),
        "steady": knob(
            True, "second moments rounded by chance, at exponents that stay", paper=False, other=False
        ),
        "betas": knob((0.9, 0.999), "how much of the moments stays at a step", other=(0.8, 0.99)),
        "eps": knob(1e-8, "added to the root of the second moment", other=1e-2),
        "weight_decay": knob(1e-2, "share of weights taken away, times the learning rate", other=0.3),
    }

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        group: int = 128,
        expand: bool = True,
        steady: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ):
        checked(
            amsgrad=(amsgrad, not amsgrad, "False: a third moment is not kept"),
            capturable=(capturable, not capturable, "False"),
            differentiable=(differentiable, not differentiable, "False: updates are not differentiable"),
        )
        said = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(
            params, {**said, "group": group, "expand": expand, "steady": steady, "amsgrad": False}
        )

    def fits(self, group: Mapping[str, Any]) -> None:
        one, two = (number(b) for b in group["betas"])
        checked(
            lr=(group["lr"], number(group["lr"]) >= 0, "zero or more"),
            betas=(group["betas"], 0 <= one < 1 and 0 <= two < 1, "two numbers from 0 to below 1"),
            eps=(group["eps"], group["eps"] >= 0, "zero or more"),
            weight_decay=(group["weight_decay"], group["weight_decay"] >= 0, "zero or more"),
            group=(group["group"], group["group"] >= 16 and group["group"] % 16 == 0, "a multiple of 16"),
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        from holdall.training.coat_states import Moments, Rule, advance

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                size, expand = group["group"], group["expand"]
                betas = (number(group["betas"][0]), number(group["betas"][1]))
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state = self._state_of(p, size)
                    state["step"] += 1
                    rule = Rule.at(
                        state["step"].item(), number(group["lr"]), betas, group["eps"],
                        group["weight_decay"], group["maximize"], group["steady"],
                    )  # fmt: skip
                    one, two = (Moments.of(state, name) for name in _MOMENTS)
                    advance(p, gradient_of(p), one, two, rule, size, expand)
        return loss

    def moments(self, p: Any) -> tuple[Any, Any]:
        """A parameter's two moments as float32, whole."""
        from holdall.training.coat_states import Moments, decode

        size = next(g["group"] for g in self.param_groups if any(q is p for q in g["params"]))
        state = self._state_of(p, size)
        one, two = (decode(Moments.of(state, name), size) for name in _MOMENTS)
        return one, two

    def _state_of(self, p: Any, size: int) -> dict[str, Any]:
        from holdall.training.coat_states import Moments

        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in _MOMENTS:
                state |= Moments.zeros(p, size).named(name)
        return state

    def taken(self, p: Any, saved: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
        from holdall.training.coat_states import Moments, encode

        told: dict[str, Any] = {"step": torch.as_tensor(saved.get("step", 0.0), dtype=torch.float32).cpu()}
        for name in _MOMENTS:
            if name not in saved or saved[name].shape != p.shape:
                got = "nothing" if name not in saved else str(list(saved[name].shape))
                raise BadInput(f"state {name}", got, f"{list(p.shape)}, as the parameter")
            if saved[name].dtype == torch.float8_e4m3fn:
                blank = Moments.zeros(p, group["group"]).named(name)
                found = {k: saved[k].to(p.device) for k in blank if k in saved}
                if any(k not in found or found[k].shape != x.shape for k, x in blank.items()):
                    raise BadInput(f"state {name}", "groups of another size", f"groups of {group['group']}")
                told |= found
            else:  # AdamW's own
                told |= encode(saved[name].to(p.device), group["group"], group["expand"]).named(name)
        return told
