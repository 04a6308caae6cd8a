"""Trying methods on a sample: which ones there are, and what each gives at a size."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdall.errors import BadInput, BudgetError
from holdall.progress import track
from holdall.registry import get, methods
from holdall.weights.base import WeightCodec
from holdall.weights.sample import Sample


@dataclass(frozen=True)
class Trial:
    """One method at one size, in figures of the whole model.

    nbytes: of its file, or the least that it can do where `lost` is None: it does not fit then.
    """

    method: WeightCodec
    nbytes: int
    lost: float | None
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.lost is not None

    def row(self) -> dict[str, float]:
        """For a report."""
        if self.lost is None:
            return {"least_bytes": self.nbytes, "seconds": self.seconds}
        return {"bytes": self.nbytes, "lost": self.lost, **self.figures, "seconds": self.seconds}


def candidates(among: Sequence[str] = (), trained: bool = False) -> list[WeightCodec]:
    """Methods of the room that pack models, each with the knobs that it wants to be tried with.

    among: only these, by name. trained: also those that train.
    """
    from holdall.weights.quality import FLOORS

    found: list[WeightCodec] = []
    for name in among or methods("weights"):
        cls = get(name)
        able = isinstance(cls, type) and issubclass(cls, WeightCodec) and bool(cls.tries)
        if among and not able:
            raise BadInput("method to try", name, "one of the room weights that packs models")
        if able and (among or (name not in FLOORS and (trained or not cls.trains))):
            found += [cls(**knobs) for knobs in cls.tries]
    return found


def called(method: WeightCodec) -> str:
    """As the command line calls it: weights.rtn --group 32."""
    usual = type(method)()
    own = {k: v for k, v in method.to_dict().items() if k != "method" and v != getattr(usual, k)}
    return " ".join([method.full_name(), *(f"--{k.replace('_', '-')} {v}" for k, v in own.items())])


def short(method: WeightCodec) -> WeightCodec:
    """The same with less text and fewer steps, where it declares how."""
    usual = type(method)()
    return method.but(**{k: v for k, v in method.brief.items() if getattr(method, k) == getattr(usual, k)})


def attempt(method: WeightCodec, sample: Sample, limit: int | None, *, brief: bool) -> Trial:
    """Pack the sample, decode it and judge what came back. limit: bytes of the whole's file."""
    used, started = short(method) if brief else method, time.perf_counter()
    try:
        packed = used.encode(sample.model, None if limit is None else sample.limit(limit))
    except BudgetError as fault:
        return Trial(method, sample.up(int(fault.least)), None, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    figures: dict[str, Any] = sample.lost(used.decode(packed))
    return Trial(method, sample.up(packed.nbytes), float(figures.pop("lost")), seconds, figures)


def attempts(tried: Iterable[WeightCodec], sample: Sample, limit: int | None, *, brief: bool) -> list[Trial]:
    return [attempt(m, sample, limit, brief=brief) for m in track(list(tried), "trying methods")]
