"""Networks of signs: eight ways to train them, one bit a weight on disk and in memory, products by popcount."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend, Trained
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.report import Report, provenance
from holdall.weights import training
from holdall.weights.training import Loss, WeightTrainer

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

OPERATORS = ("bnn", "xnor", "dorefa", "bireal", "xnor++", "reactnet", "recu", "fda")
_RATES = {"adam": 3e-3, "sgd": 0.1}


@dataclass(frozen=True, kw_only=True)
class Binary(WeightTrainer):
    """Train a network whose inner layers are signs: 1/32 of the bytes, and products by popcount.

    Weights and inputs of all Linear, Conv1d and Conv2d layers but the first and the last become -1 or +1. For
    convolutional networks that can be trained; transformers lose much more. Batch normalisation after a binary layer
    disappears into its scales. After a ReLU all signs are the same: put a Hardtanh before binary layers. bnn and
    xnor++ do not scale sums of signs to begin with: they want a normalisation after each layer.

    Shapes:
        Linear [.., C], Conv1d [B, C, W], Conv2d [B, C, H, W]; groups, strides, dilation and all kinds of padding.
    Cost:
        training: that of the float network and a quarter to a half more. File: a bit a weight, 32 bits an output
        channel and its shift, everything else as it was. Memory the same, channels padded to 64.
    Knobs:
        operator: bnn, xnor, dorefa, bireal, xnor++, reactnet, recu, fda; epochs (the paper: 100 to 400);
        optimizer: adam or sgd with momentum .9; rate (None: .003 for adam, .1 for sgd); schedule: cosine, step, flat;
        weight_decay, of what is not binary; keep: patterns of layers that stay as they are.
    Differs from the paper:
        it is a benchmark; its operators are the method here. Sizes that scale (XNOR, DoReFa, Bi-Real) are constants
        to the gradient, but XNOR's of weights; learned scales start at the mean size of the weights; FDA's small
        network works on the channels of each place; padding adds nothing, as in float; phones are not measured.
    Example:
        >>> from holdall.weights import Binary
        >>> from holdall.weights.training import accuracy
        >>> module, data, held = Binary.rehearsal()
        >>> trained = Binary().fit(module, data)
        >>> trained.packed.arrays["bits"].nbytes * 8  # of signs
        6912
        >>> accuracy(trained.model, held) > 0.6
        True

    Paper: Qin, Zhang, Ding, Li, Danelljan, Luo, Liu, Yu, "BiBench: Benchmarking and Analyzing Network
    Binarization", ICML 2023, https://arxiv.org/abs/2301.11233
    Test: tests/weights/test_binary.py
    """

    name: ClassVar[str] = "binary"
    paper: ClassVar[Paper] = Paper(
        42,
        "BiBench: Benchmarking and Analyzing Network Binarization",
        "Qin, Zhang, Ding, Li, Danelljan, Luo, Liu, Yu (ICML 2023)",
        "https://arxiv.org/abs/2301.11233",
    )

    operator: str = knob(
        "reactnet", "bnn, xnor, dorefa, bireal, xnor++, reactnet, recu or fda", other="xnor++"
    )
    epochs: int = knob(30, "passes over the data", unit="passes", paper=400, other=3)
    optimizer: str = knob("adam", "adam or sgd", other="sgd")
    rate: float | None = knob(None, "where the learning rate starts; None: .003 (adam), .1 (sgd)", other=1e-4)
    schedule: str = knob("cosine", "cosine, step or flat", other="step")
    weight_decay: float = knob(1e-2, "of parameters that are not binary", other=0.5)
    keep: tuple[str, ...] = knob((), "patterns of layers that stay as they are", other=("3",))

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {
            "operator": OPERATORS, "optimizer": _RATES, "schedule": training.SCHEDULES,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise BadInput(name, getattr(self, name), f"one of {', '.join(known)}")
        if self.epochs < 1:
            raise BadInput("epochs", self.epochs, "at least 1")

    def fit(
        self,
        model: Any,
        data: Iterable[Any],
        budget: Spend = None,
        *,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> Trained:
        from holdall.weights import binary_layers as layers

        self.look(model, data)
        example, wrong = next(iter(data)), loss or training.default_loss
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            binary = layers.binarize(model, self.operator, keep=self.keep, example=example)
            half = self._half(binary, example, self.allowed(model, budget))
            rule = self._optimizer(binary)

            def each(done: float) -> None:
                layers.advance(binary, done)

            training.learn(binary, data, rule, self.epochs, wrong, schedule=self.schedule, each=each)
        packed = self.pack(binary, example, half=half)
        trained = self.load(packed, model)
        return Trained(trained, packed, self._report(model, trained, packed, list(data), wrong))

    def _report(self, model: Any, trained: Any, packed: Packed, data: list[Any], wrong: Loss) -> Report:
        from holdall.weights.binary_file import sizes

        rows: dict[str, dict[str, float]] = {}
        for subject, module, size in (
            ("given", model, training.parameter_bytes(model)), ("packed", trained, packed.nbytes),
        ):  # fmt: skip
            layers = sizes(packed, model)[len(rows)]
            loss = training.held_out_loss(module, data, wrong)
            rows[subject] = {"bytes": size, "binary_layers": layers, "loss": loss}
        return Report(rows, "given", {"binary_layers": "B"}, provenance(**self.to_dict()))

    def _optimizer(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        from holdall.weights.binary_layers import groups

        rate = _RATES[self.optimizer] if self.rate is None else self.rate
        chosen = groups(module, self.weight_decay)
        if self.optimizer == "adam":
            return torch.optim.AdamW(chosen, lr=rate)
        return torch.optim.SGD(chosen, lr=rate, momentum=0.9)

    def _half(self, binary: torch.nn.Module, example: Any, limit: int | None) -> bool:
        """Whether scales and other tensors must be halved; sizes do not depend on what is learned."""
        if limit is None or self.pack(binary, example).nbytes <= limit:
            return False
        least = self.pack(binary, example, half=True).nbytes
        if least > limit:
            raise BudgetError(
                limit, least, who="weights.binary", why="a bit a weight, the rest in half precision"
            )
        return True

    def pack(self, module: torch.nn.Module, example: Any = None, *, half: bool = False) -> Packed:
        """What has to be kept of a module that `binarize` made, once it is trained.

        example: a batch, by which is seen which batch normalisations follow a binary layer and fold into it.
        """
        from holdall.weights.binary_file import write
        from holdall.weights.binary_folding import foldable

        folds = {} if example is None else foldable(module, example)
        return write(module, folds, half, {"method": self.to_dict()})

    def load(self, packed: Packed, like: Any) -> Any:
        from holdall.weights.binary_file import read

        return read(packed, like)

    @classmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """Digits, and a network of four convolutions."""
        data, held = training.digits()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn = torch.nn
            module = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Hardtanh(),
                nn.Conv2d(16, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16), nn.Hardtanh(),
                nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(128, 10),
            )  # fmt: skip
        return module, data[:4], held


def binarize(
    module: torch.nn.Module, operator: str = "reactnet", *, keep: Sequence[str] = (), example: Any = None
) -> torch.nn.Module:
    """A copy whose inner layers are binary, to be trained in a loop of your own.

    operator: as in `Binary`. keep: patterns of names that stay as they are, besides the first and the last layer.
    example: a batch as `fit` takes it; xnor++ needs one where there are convolutions. `binary_layers.groups` gives
    parameters to an optimiser, `binary_layers.advance` tells recu and fda how far the training is, `Binary().pack`
    makes the file.
    """
    from holdall.weights import binary_layers

    return binary_layers.binarize(module, operator, keep=keep, example=example)
