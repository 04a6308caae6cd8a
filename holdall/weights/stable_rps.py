"""STABLE-RPS: a network trained in a fixed number of parameters, each read by many weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend, Trained
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.report import Report, provenance
from holdall.weights.sharing import in_weight_space, share, shareable
from holdall.weights.sharing_file import restored, written
from holdall.weights.sharing_map import KINDS
from holdall.weights.sharing_store import SCALINGS
from holdall.weights.training import (
    WeightTrainer,
    default_loss,
    digits,
    held_out_loss,
    learn,
    parameter_bytes,
)  # fmt: skip

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_QUICK = {"epochs": 2}  # where knobs are shown to matter
_SGD = {**_QUICK, "optimiser": "sgd"}


@dataclass(frozen=True, kw_only=True)
class StableRPS(WeightTrainer):
    """Trains a module in as many parameters as you allow, a hundredth of its own if you like.

    All weights are read from one shared array through a hash; gradients, optimiser state and the file have its size.
    Biases, norms and their statistics stay as they are. With as many parameters as weights it is the module itself, to
    the last bit. Use it from scratch, where pruned networks collapse (10x and more); it saves memory, not arithmetic,
    and a trained network that is only to shrink by 2 to 4 is better rounded. For a loop of your own see `share`,
    `in_weight_space` and `plain` in `holdall.weights.sharing`. Recurrent layers keep their own weights.

    Shapes:
        psi [m]; the weights of all linears, convolutions and embeddings end to end are a virtual vector [n].
    Cost:
        4 m bytes (2 m in half precision) and the header; in training 3 m numbers more under SGD with momentum, 5 m
        under Adam, and a tile of a megabyte or one convolution's weights. Reading a weight and adding its gradient
        take one to three nanoseconds each.
    Knobs:
        compression: weights a parameter, where no budget says it; map: shift or permute (slices laid over the array:
        RANDOMFOLD), roast, hashed or local (HashedNet); chunk of weights that stay neighbours; sigma: spread of the
        array; scaling of gradients: mean (1 / sum of lambda^2), count (times the number of weights) or none; half:
        store half precision; biases: share them too; optimiser adam or sgd, with its rate, momentum (sgd), decay
        (decoupled for adam) and epochs.
    Differs from the paper:
        Its exact gradient scaling could not be read; this one makes the step of a weight independent of sigma. Slices
        are turned by a hashed distance (`map="permute"` shuffles their chunks): no difference in accuracy was
        measured, and it costs no more than copying. Starts from sums of the given weights, not from fresh noise, so
        that m = n starts as the module. At m = n lambdas are powers of two, which keeps training exact.
    Example:
        >>> import torch
        >>> from holdall.weights import StableRPS
        >>> module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        >>> x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
        >>> trained = StableRPS(epochs=2).fit(module, [(x, x[:, 0].gt(0).long())], "10%")
        >>> sum(p.numel() for p in module.parameters()), trained.packed.nbytes <= 7684
        (19210, True)

    Paper: Desai and Shrivastava, In Defense of Parameter Sharing for Model-Compression.
    Test: tests/weights/test_stable_rps.py
    """

    name: ClassVar[str] = "stable_rps"
    paper: ClassVar[Paper] = Paper(
        63,
        "In Defense of Parameter Sharing for Model-Compression",
        "Desai, Shrivastava (ICLR 2024)",
        "https://arxiv.org/abs/2310.11611",
    )

    compression: float = knob(10.0, "weights a parameter, without a budget", other=2.0, at=_QUICK)
    map: str = knob("shift", " ".join(KINDS), other="permute", at=_QUICK)
    chunk: int = knob(64, "weights that stay neighbours", unit="weights", other=8, at=_QUICK)
    sigma: float = knob(1.0, "spread of the shared array", other=0.1, at=_QUICK)
    scaling: str = knob("mean", "of gradients: mean, count or none", other="count", at=_SGD)
    half: bool = knob(False, "store half precision", other=True, at=_QUICK)
    biases: bool = knob(False, "share biases too", other=True, at=_QUICK)
    optimiser: str = knob("adam", "adam or sgd", other="sgd", at=_QUICK)
    rate: float = knob(3e-3, "of learning; falls to zero", other=1e-3, at=_QUICK)
    momentum: float = knob(0.9, "of sgd", other=0.5, at=_SGD)
    decay: float = knob(0.0, "of weights, a unit of the rate", other=0.1, at=_QUICK)
    epochs: int = knob(20, "times that each batch is seen", other=2)

    def __post_init__(self) -> None:
        words = {"map": KINDS, "scaling": SCALINGS, "optimiser": ("adam", "sgd")}
        for field, wanted in words.items():
            if getattr(self, field) not in wanted:
                raise BadInput(field, getattr(self, field), " or ".join(wanted))
        if not (
            self.compression >= 1 and self.sigma > 0 and min(self.chunk, self.epochs) >= 1 and self.rate > 0
        ):
            raise BadInput(
                "stable_rps", str(self.to_dict()), "compression, chunk, epochs >= 1, sigma and rate > 0"
            )

    def fit(
        self,
        model: torch.nn.Module,
        data: Iterable[Any],
        budget: Spend = None,
        *,
        loss: Callable[[Any, Any], Any] | None = None,
        seed: int = 0,
    ) -> Trained:
        self.look(model, data)
        params, loss = self._params(model, budget, seed), loss or default_loss
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._shared(model, params, seed)
            optimizer = in_weight_space(self._optimizer(module), module)
            learn(module, data, optimizer, self.epochs, loss)
            packed = written(module, self.to_dict(), seed, self.half)
            made = restored(packed, model)
            sample = [batch for batch, _ in zip(data, range(8), strict=False)]
            before, after = (held_out_loss(m, sample, loss) for m in (model, made))
        held = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        rows = {
            "given": {"bytes": parameter_bytes(model), "numbers": _numbers(model), "loss": before},
            "packed": {"bytes": packed.nbytes, "numbers": _numbers(made), "loss": after},
        }
        rows["packed"]["state_bytes"] = sum(v.nbytes for v in held)
        told = provenance(method=self.to_dict(), budget=str(budget), seed=seed)
        return Trained(made, packed, Report(rows, "given", {"state_bytes": "B"}, told))

    def load(self, packed: Packed, like: torch.nn.Module) -> torch.nn.Module:
        """Weights stay shared: the module has m parameters. `holdall.weights.sharing.plain` expands them."""
        return restored(packed, like)

    @classmethod
    def rehearsal(cls) -> tuple[torch.nn.Module, Sequence[Any], Sequence[Any]]:
        nn = torch.nn
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
            )
        return module, *digits(128)

    def _params(self, model: torch.nn.Module, budget: Spend, seed: int) -> int:
        """As many as the budget has room for beside what is not shared."""
        tensors, limit = shareable(model, self.biases), self.allowed(model, budget)
        total = sum(t.numel() for t in tensors.values())
        fewest = len(tensors) if self.map == "local" else 1
        if limit is None:
            return max(fewest, int(total / self.compression))

        def size(params: int) -> int:
            return written(self._shared(model, params, seed), self.to_dict(), seed, self.half).nbytes

        least, most = size(fewest), size(total)
        if limit < least:
            raise BudgetError(
                limit, least, who="weights.stable_rps", why="all that is not shared, and the header"
            )
        params = total if limit >= most else min(total, fewest + (limit - least) // (2 if self.half else 4))
        while size(params) > limit:  # the header has grown by some digits
            params -= max(1, (size(params) - limit) // 4)
        return params

    def _shared(self, model: torch.nn.Module, params: int, seed: int) -> torch.nn.Module:
        how: dict[str, Any] = {
            "map": self.map,
            "chunk": self.chunk,
            "sigma": self.sigma,
            "scaling": self.scaling,
        }
        return share(model, params, seed, biases=self.biases, **how)

    def _optimizer(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        if self.optimiser == "adam":
            return torch.optim.AdamW(module.parameters(), self.rate, weight_decay=self.decay)
        return torch.optim.SGD(module.parameters(), self.rate, self.momentum, weight_decay=self.decay)


def _numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
