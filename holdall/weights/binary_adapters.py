"""Adapters of one to four bits: a task, or a style, in kilobytes beside a model that stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kinds import Spend, Trained
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.parts.losses import default_loss
from holdall.report import Report
from holdall.weights.training import Batch, Loss, WeightTrainer, held_out_loss, learn

if TYPE_CHECKING:
    import torch

    from holdall.packed import Packed
else:
    torch = lazy("torch", extra="weights")

PLACEMENTS, HEADS, BITS = ("adaptformer", "lora"), ("quantised", "full", "none"), (1, 2, 3, 4, 16, 32)
SCALES = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class BinaryAdapters(WeightTrainer):
    """Teaches a frozen model a task in a few kilobytes: adapters whose weights learn at 1 to 4 bits.

    Adapters lie in flat minima: noise on their weights hardly hurts, so bytes are better spent on width than on
    precision. Takes any torch module with a stack of blocks, and packed models (`weights.open`), which stay packed. A
    classifier's head learns too. Poor where the frozen model knows nothing of the task, and in few steps.

    Shapes:
        two matrices, [width, D] and [D, width], beside each MLP (or query and value projection) with D inputs.
    Cost:
        ceil(D width bits / 8) + 8 bytes a matrix and about 800 bytes of header; a step of training costs what one of
        the whole model does without the gradients of its weights. Loaded, adapters are float32.
    Knobs:
        bits of a weight (1 to 4; 16 and 32 are floats, for comparison); width, None: what fits the budget, the paper's
        32 without one; placement: "adaptformer", beside each MLP, or "lora", on queries and values; scale of what
        adapters add (the paper tunes it: `swept`); dropout inside adapters of the MLP; head: "quantised" like the
        adapters, "full" in single precision, or "none", left as it is; epochs, rate and decay of AdamW.
    Differs from the paper:
        the spread of a matrix divides by its count, not by one less; a head goes on from the one that is there; the
        base runs in evaluation mode while adapters learn (no dropout of its own, running statistics stay); all numbers
        stand in two sections, since one costs more than a small adapter; three bits, floats and budgets are there, too.
    Example:
        >>> from holdall.weights import BinaryAdapters
        >>> module, data, held = BinaryAdapters.rehearsal()  # it knows the digits 0 to 4, and shall learn 5 to 9
        >>> trained = BinaryAdapters(epochs=2).fit(module, data, "1.5kB")
        >>> trained.packed.nbytes <= 1500, trained.packed.meta["width"]
        (True, 41)

    Paper: Jie, Wang and Deng, ICCV 2023.
    Test: tests/weights/test_binary_adapters.py
    """

    name: ClassVar[str] = "binary_adapters"
    brief: ClassVar[Mapping[str, Any]] = {"epochs": 2, "rate": 1e-2}
    paper: ClassVar[Paper] = Paper(
        7,
        "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy",
        "Jie, Wang and Deng, ICCV 2023",
        "https://arxiv.org/abs/2307.16867",
    )

    bits: int = knob(1, "bits a weight: 1 to 4; 16 and 32 are floats", unit="bit", other=2)
    width: int | None = knob(None, "rows of the middle; None: what fits, 32 without a budget", other=3)
    placement: str = knob("adaptformer", "adaptformer (beside MLPs) or lora (queries, values)", other="lora")
    scale: float = knob(1.0, "what adapters add is multiplied by this", paper="tuned", other=0.1)
    dropout: float = knob(0.1, "share of the middle dropped in training", other=0.5)
    head: str = knob("quantised", "a classifier's head: quantised, full or none", other="none")
    epochs: int = knob(100, "times round the data", other=3)
    rate: float = knob(1e-3, "learning rate, falling to 0 along a cosine", other=3e-2)
    decay: float = knob(1e-4, "weight decay", other=1.0)

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.placement not in PLACEMENTS or self.head not in HEADS:
            told = f"bits {self.bits}, placement {self.placement}, head {self.head}"
            raise BadInput("binary_adapters", told, f"one of {BITS}, of {PLACEMENTS} and of {HEADS}")
        if (self.width is not None and self.width < 1) or self.epochs < 1 or not 0 <= self.dropout < 1:
            told = f"width {self.width}, epochs {self.epochs}, dropout {self.dropout}"
            raise BadInput("binary_adapters", told, "at least 1, at least 1, and a share below 1")

    def fit(
        self,
        model: torch.nn.Module,
        data: Iterable[Batch],
        budget: Spend = None,
        *,
        loss: Loss | None = None,
        seed: int = 0,
        held_out: Sequence[Batch] | None = None,
    ) -> Trained:
        """As every trainer. held_out: what the report's losses are measured on; else the first eight batches."""
        from holdall.weights import adapter_file
        from holdall.weights.adapter_linear import base_bytes
        from holdall.weights.adapter_modules import adapters_of

        loss = loss or default_loss
        with torch.random.fork_rng():
            made = self.attach(model, data, budget, loss=loss, seed=seed)
            adapters = adapters_of(made)
            learners = [p for p in adapters.parameters() if p.requires_grad]
            optimiser = torch.optim.AdamW(learners, lr=self.rate, weight_decay=self.decay)
            learn(adapters, data, optimiser, self.epochs, lambda _, batch: loss(made, batch))
        packed = self.keep(made)
        ready = self.load(packed, model)  # figures are of what was really kept
        shown = list(held_out) if held_out is not None else [b for b, _ in zip(data, range(8), strict=False)]
        before, after = (held_out_loss(m, shown, loss) for m in (model, ready))
        packed.meta["report"] = adapter_file.figures(before, after)
        sizes = {"base": base_bytes(model), "adapted": packed.nbytes}
        rows = {name: {"bytes": n, **packed.meta["report"]["rows"][name]} for name, n in sizes.items()}
        return Trained(ready, packed, Report(rows, "base"))

    def attach(
        self,
        model: torch.nn.Module,
        data: Iterable[Batch],
        budget: Spend = None,
        *,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> torch.nn.Module:
        """For a training loop of your own, before `keep`: a copy in which only adapters ask for gradients.

        It shares all other weights with `model`. data: of which the first batch is run once."""
        from holdall.weights import adapter_file
        from holdall.weights import adapter_modules as modules
        from holdall.weights import adapter_places as places

        self.look(model, data)
        run = loss or default_loss
        shell = modules.frozen(model)
        found = places.found(shell, self.placement, lambda: run(shell, next(iter(data))))
        head = None if self.head == "none" else places.head_of(shell)
        width = adapter_file.widest(self, shell, found, head, self.allowed(model, budget))
        torch.manual_seed(seed)
        frame = modules.Adapters(self, found, width, head, modules.digest(model))
        return modules.adapted(model, frame)

    def keep(self, module: torch.nn.Module) -> Packed:
        """What has to be kept of a module that `attach` made."""
        from holdall.weights.adapter_file import write
        from holdall.weights.adapter_modules import adapters_of

        return write(adapters_of(module))

    def load(self, packed: Packed, like: torch.nn.Module) -> torch.nn.Module:
        """A copy of the base with what was packed, sharing the base's weights; refused on any other base."""
        from holdall.verbs import recipe_of
        from holdall.weights import adapter_file, adapter_modules

        recipe = recipe_of(packed, "an adapter")
        if not isinstance(recipe, BinaryAdapters):
            raise BadInput("adapter", recipe.full_name(), "what weights.binary_adapters packed")
        frame = adapter_file.opened(packed, like, recipe)
        with torch.random.fork_rng():
            made = adapter_modules.adapted(like, frame)
        adapter_file.fill(packed, frame)
        return made

    def swept(
        self,
        model: torch.nn.Module,
        data: Iterable[Batch],
        held_out: Sequence[Batch],
        budget: Spend = None,
        *,
        scales: Sequence[float] = SCALES,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> tuple[BinaryAdapters, dict[float, float]]:
        """The recipe with the scale that gives the least held-out loss, and the loss of each."""
        found = {
            s: self.but(scale=s)
            .fit(model, data, budget, loss=loss, seed=seed, held_out=held_out)
            .report["loss"]
            for s in scales
        }
        return self.but(scale=min(found, key=lambda s: found[s])), found

    @staticmethod
    def allowed(module: torch.nn.Module, budget: Spend) -> int | None:
        """The budget in bytes of the file; packed matrices count as they are held."""
        from holdall.weights.adapter_linear import base_bytes, numbers

        asked = Budget.parse(budget)
        return None if asked is None else asked.limit(base_bytes(module), numbers(module))

    @classmethod
    def rehearsal(cls) -> tuple[torch.nn.Module, Sequence[Batch], Sequence[Batch]]:
        from holdall.weights.adapter_rehearsal import rehearsal

        return rehearsal()
