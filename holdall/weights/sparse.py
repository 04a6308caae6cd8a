"""Fast sparse ConvNets: 1x1 convolutions pruned while they learn, stored sparse, and run the faster for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend, Trained
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.report import Report, provenance
from holdall.weights.pruning import Pruner, prunable, sparsify, sparsity_of
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

__all__ = ["Sparse", "compile_sparse", "sparsify"]

_MOST = 0.98  # no budget makes a layer emptier


@dataclass(frozen=True, kw_only=True)
class Sparse(WeightTrainer):
    """Prune a convolutional net to a tenth while it trains; it then runs faster on a CPU, and its file is small.

    For MobileNet-like nets: most of their weights and time are in 1x1 convolutions, and these become sparse, step by
    step, the smallest weights first. `compile_sparse(trained.model)` gives the net that is fast. Linears are pruned,
    too, and stored sparse, but run dense. Poor below 70 % (dense kernels are then as fast), for few pixels, and where
    there is no training data. For your own training loop: `sparsify(model, .9, steps=...)` and its `step()`.

    Shapes:
        weights [O, I] of 1x1 convolutions and linears between the first and the last layer; the first, the last and
        larger convolutions, depthwise ones among them, stay dense.
    Cost:
        as training without it, plus sorting each layer's weights every few steps; about 3 bytes a non-zero (5 in single
        precision) and two a row on disk, no more in memory than the net has.
    Knobs:
        sparsity of each layer (a budget may ask for more); block: output channels that share their non-zeros, 1, 2 or 4
        (faster, a little worse); epochs over the data, of which the first share `warm` trains dense, the share `ramp`
        prunes and the rest trains what is left; every: steps between new masks; rate of Adam, falling to 0; half:
        weights in two bytes.
    Differs from the paper:
        Adam and few epochs instead of the paper's long schedules: take more epochs than dense training needs.
        Normalisations are folded when training is over, before anything is stored. Non-zeros are stored with gaps of
        one byte, not steps of two. On processors that reorder instructions nothing is pipelined by hand. Channels begin
        at cache lines and may be padded. The paper's cache-aware MobileNet is a choice of layers and is not here.
    Example:
        >>> import torch
        >>> from holdall.weights import Sparse
        >>> net, data, _ = Sparse.rehearsal()
        >>> trained = Sparse(epochs=4).fit(net, data)
        >>> round(trained.report["sparsity"], 2)
        0.9

    Paper: Elsen, Dukhan, Gale, Simonyan, Fast Sparse ConvNets.
    Test: tests/weights/test_sparse.py
    """

    name: ClassVar[str] = "sparse"
    paper: ClassVar[Paper] = Paper(
        54,
        "Fast Sparse ConvNets",
        "Elsen, Dukhan, Gale, Simonyan (CVPR 2020)",
        "https://arxiv.org/abs/1911.09723",
    )

    brief: ClassVar[Mapping[str, Any]] = {"epochs": 6}

    sparsity: float = knob(0.9, "share of each pruned layer's weights that is 0", other=0.7)
    block: int = knob(1, "output channels that share their non-zeros: 1, 2 or 4", unit="channels", other=4)
    epochs: int = knob(20, "passes over the data", other=8)
    warm: float = knob(0.1, "share of the training before the first weight is pruned", other=0.3)
    ramp: float = knob(0.6, "share of the training in which pruning goes on", other=0.3)
    every: int = knob(8, "steps between new masks", unit="steps", other=3)
    rate: float = knob(4e-3, "learning rate at the start", other=1e-3)
    half: bool = knob(True, "store two bytes a weight, not four", other=False)

    def __post_init__(self) -> None:
        if not (min(self.warm, self.ramp) >= 0 and self.warm + self.ramp <= 1 and self.epochs >= 1):
            asked = f"warm {self.warm}, ramp {self.ramp}, {self.epochs} epochs"
            raise BadInput("schedule", asked, "shares of at most 1 together, one epoch at least")
        if not 0 <= self.sparsity <= _MOST or self.block not in (1, 2, 4):
            asked = f"sparsity {self.sparsity}, block {self.block}"
            raise BadInput("pruning", asked, f"0 to {_MOST}, block 1, 2 or 4")

    def fit(
        self,
        model: Any,
        data: Iterable[Any],
        budget: Spend = None,
        *,
        loss: Callable[[Any, Any], Any] | None = None,
        seed: int = 0,
    ) -> Trained:
        miss = loss or default_loss
        self.look(model, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = copy.deepcopy(model)
            sparsity = self._sparsity(made, self.allowed(model, budget))
            steps = self.epochs * sum(1 for _ in data)
            pruner = Pruner(
                made, sparsity, self.block, round(self.warm * steps), round(self.ramp * steps), self.every
            )
            optimizer = torch.optim.Adam(made.parameters(), self.rate)
            learn(made, data, optimizer, self.epochs, miss, each=lambda _done: pruner.step())
            pruner.finish()
        packed = self.pack(made)
        trained = self.load(packed, model)
        told = list(data)
        rows = {
            "original": {"bytes": parameter_bytes(model), "loss": held_out_loss(model, told, miss), "sparsity": 0.0},
            "trained": {
                "bytes": packed.nbytes, "loss": held_out_loss(trained, told, miss),
                "sparsity": sparsity_of(prunable(trained)),
            },
        }  # fmt: skip
        return Trained(
            trained, packed, Report(rows, "original", provenance=provenance(method=self.to_dict()))
        )

    def _sparsity(self, module: Any, limit: int | None) -> float:
        """The knob's, or the least above it that fits."""
        if limit is None or self._bytes(module, self.sparsity) <= limit:
            return self.sparsity
        low, high = self.sparsity, max(_MOST, self.sparsity)
        least = self._bytes(module, high)
        if least > limit:
            raise BudgetError(
                limit, least, who="weights.sparse", why=f"{high:.0%} of the layers' weights are 0"
            )
        while high - low > 1e-3:
            middle = (low + high) / 2
            low, high = (low, middle) if self._bytes(module, middle) <= limit else (middle, high)
        return high

    def _bytes(self, module: Any, sparsity: float) -> int:
        """What a file takes at most, whichever weights stay."""
        from holdall.weights.sparse_file import slack

        trial = copy.deepcopy(module)
        sparsify(trial, sparsity, block=self.block)
        return self.pack(trial).nbytes + slack(trial, self.block)

    def pack(self, module: Any) -> Packed:
        """A pruned module as a file: what `sparsify` and your own loop made is packed by this."""
        from holdall.weights.sparse_file import write

        return write(module, self.block, self.half, {"room": "weights", "method": self.to_dict()})

    def load(self, packed: Packed, like: Any) -> Any:
        from holdall.weights.sparse_file import read

        return read(packed, like)

    @classmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        train, held = digits()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn = torch.nn
            layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
            for a, b, stride in ((16, 64, 1), (64, 96, 1)):
                layers += [nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU6()]
                layers += [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU6()]
            net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
        return net, train[:8], held


def compile_sparse(module: Any, *, choose: str = "timing") -> Any:
    """A torch net as one that runs channel by channel, with sparse kernels for its 1x1 convolutions; for inference.

    Takes what torch.fx can trace of convolutions (any kernel, stride and groups), normalisations, ReLU, ReLU6, SiLU,
    Hardswish, sigmoids, additions, squeeze-excite, global pooling and linears. choose: how many rows and pixels are
    taken at once, by "timing" or by the cost "model" (`spmm_cost`).
    """
    from holdall.weights.chw import SparseNet

    return SparseNet(module, choose)
