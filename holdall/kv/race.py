"""Race: methods beside each other, the floors and the whole cache, each at every budget, on the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.kv.asking import ARMS, Asking, Found, Subjects, reading_cost, summary
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.method import Paper
from holdall.optional import lazy
from holdall.report import Report, provenance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from holdall.kv.needles import Haystack
else:
    torch = lazy("torch", extra="kv")

COSTLY = ("first", "reading")  # arms that read the text anew for each figure
FLOORS = ("kv.random", "kv.recent", "kv.h2o")
BUDGETS = "5%,10%,25%,50%"  # of a room
_CONTEXT = 2048  # tokens of the protocol


@dataclass(frozen=True, kw_only=True)
class Furthest(KVSelector):
    """Looks back as far as any of `among` does, and chooses nothing: what a text is read with for all of them."""

    name: ClassVar[str] = "furthest"
    paper: ClassVar[Paper] = Paper(0, "Looking back for others", "no paper")

    among: tuple[KVSelector, ...]

    def asks(self, tokens: int) -> tuple[int, float]:
        last, share = zip(*(m.asks(tokens) for m in self.among), strict=True)
        return max(last), max(share)

    def score(self, x: Entries) -> Tensor:
        return torch.zeros(x.shape)


def entrants() -> tuple[list[KVSelector], str]:
    """Every selector of the room with its own settings, floors first, and what is left out and why."""
    from holdall.registry import methods

    taken, alone = [], []
    for name, cls in methods("kv").items():
        if cls.measured_by != "quality" or not issubclass(cls, KVSelector):
            alone.append(name)
        elif name != "kv.none":
            taken.append(cls())
    others = f"{', '.join(alone)} (measured by themselves: holdall measure {alone[0]}), " if alone else ""
    taken.sort(key=lambda m: FLOORS.index(m.full_name()) if m.full_name() in FLOORS else len(FLOORS))
    return taken, f"{others}kv.none (it is the row full)"


def asked_for(on: str | None, usual: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """The arms and the text that `--on` names, commas between; `usual`: the arms where it names none."""
    from holdall.kv.quality import _text

    words = [] if on is None else [on] if Path(on).is_file() else [w.strip() for w in on.split(",")]
    known = (*ARMS, *COSTLY)
    paths = [w for w in words if w not in known]
    if len(paths) > 1 or "" in paths:
        raise BadInput("on", on, f"arms ({', '.join(known)}), and at most one text, commas between")
    if paths and not Path(paths[0]).exists() and not {"/", "\\", "."} & set(paths[0]):
        raise BadInput("on", paths[0], f"an arm ({', '.join(known)}), or the path of a text")
    if paths:
        _text(paths[0])  # a text that cannot be read is told before a model is
    arms = tuple(a for a in known if a in words)
    return arms or tuple(usual), paths[0] if paths else None


def listed(budgets: str | None) -> list[str]:
    """The budgets of a list with commas between, as they were written."""
    words = [w.strip() for w in budgets.split(",")] if budgets else []
    for word in words:
        Budget.parse(word)
    return list(dict.fromkeys(words))


def compare(
    methods: Sequence[KVSelector],
    budgets: Sequence[Spend],
    *,
    model: str | None = None,
    on: str | None = None,
    quick: bool = False,
) -> Report:
    """The report of `quality.measure`, of several methods or budgets: a row each, named "kv.snapkv 5%".

    A method that cannot hold a budget has no row: `refused` in the provenance tells the least that it can. Interrupted
    after the first text, it reports the texts that were read, and provenance says so.
    """
    from holdall.kv.needles import haystack
    from holdall.kv.quality import _text
    from holdall.weights.model import Model

    alone = len(methods) == 1
    usual = (*ARMS, *(() if quick or not alone else COSTLY))
    arms, path = asked_for(on, usual)
    subjects, mine = _subjects(methods, budgets)
    text, source = _text(path), Model.read(model or "smollm2")
    tokenizer, net = source.tokenizer(), source.build(torch.bfloat16)
    subjects = {name: (m.prepared(net), budget) for name, (m, budget) in subjects.items()}
    hays = [haystack(tokenizer, text, _CONTEXT, seed) for seed in range(1 if quick else 3)]
    first, refused = 2 if "first" in arms else 0, dict[str, BudgetError]()
    texts = _askings(net, hays, subjects, first, arms, refused)
    found = _found(texts, len(hays), mine)
    rows = _rows(found, [name for name in subjects if name not in refused])
    if "reading" in arms and len(found) == len(hays):
        for name in ("full", *(n for n in mine if n in rows)):
            rows[name] |= reading_cost(net, hays[0].context, *subjects.get(name, (None, None)))
    facts = provenance(
        **_told(methods, budgets), model=model or "smollm2", on=path or "needle", arms=list(arms),
        dtype="bfloat16", tokens=_CONTEXT, facts=10 * len(found), facts_first=first * len(found),
        refused={name: str(refused[name]) for name in subjects if name in refused},
        interrupted=len(found) < len(hays),
    )  # fmt: skip
    return Report(rows, baseline="full", provenance=facts)


def _subjects(methods: Sequence[KVSelector], budgets: Sequence[Spend]) -> tuple[Subjects, list[str]]:
    """At each budget the floors, and last the methods; and the names of what is measured, which floors beside are not.

    Without a budget there are no floors: they would keep everything.
    """
    from holdall.kv import Random, Recent

    names = {m.full_name() for m in methods}
    floors = [f for f in (Random(), Recent()) if f.full_name() not in names]
    several = len(methods) * len(budgets) > 1
    found: Subjects = {}
    for budget in budgets:
        for m in (*(floors if budget is not None else ()), *methods):
            found[f"{m.full_name()} {budget}" if several else m.full_name()] = (m, budget)
    return found, [name for name, (m, _) in found.items() if m.full_name() in names]


def _askings(
    net: Any,
    hays: Sequence[Haystack],
    subjects: Subjects,
    first: int,
    arms: Sequence[str],
    refused: dict[str, BudgetError],
) -> Iterator[Asking]:
    """Each text's, without those who could not hold an earlier one."""
    lookback = Furthest(among=tuple(m for m, _ in subjects.values()))
    for hay in hays:
        left = {name: subject for name, subject in subjects.items() if name not in refused}
        yield Asking(net, hay, left, lookback, first, arms, refused)


def _found(texts: Iterable[Asking], count: int, mine: Sequence[str]) -> list[Found]:
    """What is found in each text, with a bar on a terminal; fewer where Ctrl-C came after the first."""
    from holdall.progress import track

    found: list[Found] = []
    try:
        for asked in texts:
            for _ in track(asked.run(), f"text {len(found) + 1} of {count}", asked.steps):
                if asked.refused and not set(mine) - set(
                    asked.refused
                ):  # none is left of what was to be measured
                    raise asked.refused[mine[-1]]
            found.append(asked.rows)
    except KeyboardInterrupt:
        if not found:
            raise
    return found


def _rows(found: list[Found], names: Sequence[str]) -> dict[str, dict[str, float]]:
    figures = summary(found := [{n: text[n] for n in ("full", *names)} for text in found])
    full = figures["full"]
    for row in figures.values():
        row["share"] = row["bytes"] / full["bytes"]
        if "perplexity" in row:
            row["perplexity_ratio"] = row["perplexity"] / full["perplexity"]
        row |= {f"{k}_full": full[k] for k in ("recall", "greedy") if k in full}
    return figures


def _told(methods: Sequence[KVSelector], budgets: Sequence[Spend]) -> dict[str, Any]:
    parsed = [str(Budget.parse(b)) for b in budgets]
    if len(methods) == 1:
        return {"method": methods[0].to_dict(), "budget": ",".join(parsed)}
    return {"methods": [m.to_dict() for m in methods], "budget": ",".join(parsed)}
