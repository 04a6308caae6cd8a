"""Auto: tries the other methods on a sample of the model, and packs with the one that lost least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.report import Report
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model

if TYPE_CHECKING:
    import torch

    from holdall.weights.packed_linear import Held
    from holdall.weights.trial import Trial

_WORTH = 1_000_000  # numbers of a model below which a search takes no longer than to remember it


@dataclass(frozen=True, kw_only=True)
class Auto(WeightCodec):
    """Measures which method suits your model and budget, then packs with that one; the default of `pack`.

    Methods and settings that can meet the budget pack a sample of the model (some of its layers, its most used tokens);
    what comes back is judged on held-out text by its divergence from the original (encoders: by cosine; lone matrices:
    by squared error). The best one packs the whole; the file is that method's own, byte for byte. The search is kept
    under ~/.cache/holdall. Poor where a sample of layers misleads, and blind to what only long training would gain.

    Shapes:
        any tensors; models without config and tokenizer are judged by their numbers.
    Cost:
        about half a minute to two minutes for each 20 million numbers of the sample, whatever the model's size; once
        for a model and budget. Then what the chosen method costs.
    Knobs:
        among: methods to choose from, none: all that pack models and do not train; trained: also those that train
        (minutes to hours), none: where calibration text is given; windows x window tokens of judging; most numbers of
        the sample, which is the whole model where that is smaller; within: the divergence in nats that may be lost
        where there is no budget (the smallest file then wins); cache: keep the search, and look it up.
    Differs from the paper:
        there is no paper.
    Example:
        >>> import torch
        >>> from holdall.weights import Auto, Model
        >>> w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
        >>> packed = Auto().encode(Model({"w": w}), "14%")
        >>> packed.nbytes <= 0.14 * w.nbytes, packed.meta["method"]["method"] != "weights.auto"
        (True, True)

    Paper: none.
    Test: tests/weights/test_auto.py
    """

    name: ClassVar[str] = "auto"
    usual: ClassVar[bool] = True
    tries: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    brief: ClassVar[Mapping[str, Any]] = {"among": ("weights.rtn",), "windows": 1, "window": 32}
    skips: ClassVar[Mapping[str, str]] = {
        "check_knobs_are_live": "its knobs steer a search that may end alike; tests/weights/test_auto.py moves each"
    }
    paper: ClassVar[Paper] = Paper(0, "Choice by measuring", "no paper claims it")

    among: tuple[str, ...] = knob(
        (), "methods to choose from; none: all that do not train", other=("weights.rtn",)
    )
    trained: bool | None = knob(
        None,
        "also methods that train, for minutes to hours; none: where calibration text is given",
        other=True,
    )
    windows: int = knob(4, "windows of held-out text that are judged", other=1)
    window: int = knob(256, "tokens a window", unit="tokens", other=64)
    most: int = knob(20_000_000, "numbers of the sample, about", other=100_000)
    within: float = knob(0.01, "without a budget: what may be lost", unit="nat", other=1.0)
    cache: bool = knob(True, "keep the search and look it up", other=False, changes="nothing")

    def __post_init__(self) -> None:
        if self.windows < 1 or self.window < 2 or self.most < 1 or not self.within >= 0:
            raise BadInput("auto", str(self.to_dict()), "windows, most >= 1, window >= 2, within >= 0")

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(x, budget)
        trials, how = self.search(x, limit)
        least: BudgetError | None = None
        for trial in trials:
            try:
                packed = trial.method.encode(x, limit, to=to)
            except BudgetError as fault:  # the sample was a little too hopeful, or nothing fits
                least = fault if least is None or fault.least < least.least else least
                continue
            packed.notes["search"] = report(trials, trial, how)
            return packed
        raise least or BadInput("methods to choose from", self.among, "at least one that packs models")

    def search(self, x: Model, limit: int | None) -> tuple[list[Trial], dict[str, Any]]:
        """(every candidate, the best first; how they were tried). limit: bytes of the file."""
        from holdall.weights import search_cache, trial
        from holdall.weights.coded_file import finite
        from holdall.weights.sample import sample

        for name, tensor in x.state.items():
            if tensor.is_floating_point():
                finite(name, tensor)
        trained = x.calibration is not None if self.trained is None else self.trained
        tried = trial.candidates(self.among, trained)
        kept = self.cache and x.elements >= _WORTH
        knobs = {k: v for k, v in self.to_dict().items() if k != "cache"}
        key = search_cache.key_of(x, limit, knobs, tried) if kept else ""
        found = search_cache.read(key, tried) if kept else None
        if found is not None:
            return self.ranked(found[0], limit), {"sample": found[1], "looked_up": True}
        cut = sample(x, self.most, self.windows, self.window)
        trials = trial.attempts(tried, cut, limit, brief=True)
        if kept:
            search_cache.write(key, trials, cut.model.name)
        return self.ranked(trials, limit), {"sample": cut.model.name, "looked_up": False}

    def ranked(self, trials: Sequence[Trial], limit: int | None) -> list[Trial]:
        """Under a budget the least lost first; without one the smallest of those that lose little."""

        def place(t: Trial) -> tuple[int, float]:
            if t.lost is None:
                return 2, t.nbytes
            if limit is None and t.lost <= self.within:
                return 0, t.nbytes
            return 1, t.lost

        return sorted(trials, key=place)

    def decode(self, packed: Packed) -> Model:
        found: Model = _real(packed).decode(packed)
        return found

    def open(self, packed: Packed, memory: Spend = None) -> torch.nn.Module:
        return _real(packed).open(packed, memory)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        return _real(packed).held(packed, memory)


def report(trials: Sequence[Trial], chosen: Trial, how: Mapping[str, Any]) -> Report:
    from holdall.weights.trial import called

    rows = {called(t.method): t.row() for t in trials}
    return Report(rows, units={"least_bytes": "B"}, provenance={"chosen": chosen.method.to_dict(), **how})


def _real(packed: Packed) -> WeightCodec:
    """The method that packed it."""
    from holdall.verbs import method_of

    found = method_of(packed)
    if isinstance(found, Auto) or not isinstance(found, WeightCodec):
        raise CorruptArtefact("the header", f"a model that {found.full_name()} is said to have packed")
    return found
