"""Asking a cache that has shrunk: does the model still find the needles, and the passages that it read?

Three ways to ask for a fact. *In the window*: the cache shrinks after it has read the question, as at the end of a
prompt. *Late*: it shrinks when only the text is known, and all ten questions are put to what is left, as in a second
turn. *First*: the question stands before the text, and the cache shrinks at the text's end; that costs a reading of
the text a question, so only some are asked. A fact is found where its word is more likely than five others of its sort
(chance: 1/6), and found greedily where it is the likeliest of all tokens. Each candidate is judged by its first token;
those of one fact all start differently.

*Copy*: the cache that shrank when only the text was known reads the first 16 tokens of an earlier passage again, and
has to go on as the passage did: the share of the next 48 tokens that are the likeliest, each after the true ones
before it. Four passages of a text, at an eighth, three, five and seven eighths of it. A part is guessed without memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdall.budget import Budget
from holdall.errors import BudgetError
from holdall.kinds import Spend
from holdall.kv.needles import SHOWN, Haystack, Probe
from holdall.kv.refusal import refusal
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.dropins.transformers import Cache
    from holdall.kv.base import KVSelector
else:
    torch = lazy("torch", extra="kv")


def read(model: Any, cache: Cache, ids: Sequence[int], chunk: int = 512) -> None:
    """Feed a part of a prompt without judging it yet."""
    with cache.prefilling(judge=False), torch.inference_mode():
        for at in range(0, len(ids), chunk):
            model(torch.tensor([ids[at : at + chunk]]), past_key_values=cache, logits_to_keep=1)


def answer(model: Any, cache: Cache, ids: Sequence[int]) -> torch.Tensor:
    """Logits of the token after `ids`, which are appended to the cache, [V]."""
    with cache.appending(), torch.inference_mode():
        return model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1].float()


def found(logits: torch.Tensor, probe: Probe) -> tuple[float, float]:
    """(the right word beats the other five, it is the likeliest token of all), each 0 or 1."""
    chosen = int(logits[probe.words].argmax()) == probe.right
    return float(chosen), float(int(logits.argmax()) == probe.words[probe.right])


def copied(model: Any, cache: Cache, hay: Haystack) -> float:
    """Share of the tokens of earlier passages that the cache gives back; it stays as it is."""
    hits = [
        logits_after(model, cache.copy(), ids)[SHOWN - 1 : -1].argmax(1) == torch.tensor(ids[SHOWN:])
        for ids in hay.passages()
    ]
    return float(torch.cat(hits).float().mean())


def continuation(model: Any, cache: Cache, after: list[int]) -> float:
    """Mean negative log-likelihood of the text's next tokens; the cache stays as it is."""
    logits = logits_after(model, cache.copy(), after)[:-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(after[1:])))


def logits_after(model: Any, cache: Cache, ids: list[int]) -> torch.Tensor:
    """Logits behind each of `ids`, which are appended to the cache, [T, V]."""
    with cache.appending(), torch.inference_mode():
        return model(torch.tensor([ids]), past_key_values=cache).logits[0].float()


ARMS = ("needle", "recall", "perplexity")  # in the window; late questions and copies; what follows
Subjects = dict[str, tuple["KVSelector", Spend]]
Found = dict[str, dict[str, Any]]  # subject -> measure -> a figure, or hits (0 or 1) fact by fact
Refused = dict[str, BudgetError]  # subject -> why it cannot hold its budget, with the least that it can


def recall(
    model: Any,
    hay: Haystack,
    subjects: Subjects,
    lookback: KVSelector,
    first: int = 0,
    arms: Collection[str] = ARMS,
) -> Found:
    """What each subject finds in one haystack; the text is read once for all. "full" is the whole cache.

    lookback: the method that looks back furthest among the subjects; it decides which queries are remembered.
    first: how many questions are also asked before the text, each at the cost of reading it anew.
    arms: which of `ARMS` to run; what is left out costs nothing and leaves no figures.
    """
    asked = Asking(model, hay, dict(subjects), lookback, first, arms)
    for _ in asked.run():
        pass
    return asked.rows


@dataclass
class Asking:
    """`recall` step by step, `steps` in number, into `rows`.

    refused: where subjects are noted that cannot hold their budget, and have no row; None: BudgetError is raised.
    """

    model: Any
    hay: Haystack
    subjects: Subjects  # those that can hold their budget; changed
    lookback: KVSelector
    first: int = 0
    arms: Collection[str] = ARMS
    refused: Refused | None = None
    rows: Found = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return 2 + self.first + len(self._probes)

    @property
    def _probes(self) -> list[Probe]:
        return self.hay.probes if "needle" in self.arms or "recall" in self.arms else []

    def run(self) -> Iterator[None]:
        base = self._reader(self.hay.context)
        small = dict(self._shrunk(base))
        self.rows |= {n: {"bytes": float(c.nbytes), "entries": float(c.lengths[0])} for n, c in small.items()}
        yield
        for probe in self._probes:
            if "needle" in self.arms:
                self._in_the_window(base, probe)
            if "recall" in self.arms:
                self._late(small, probe)
            yield
        for probe in self.hay.some(self.first):
            for name, cache in self._shrunk(self._reader(self.hay.asked_first(probe))):
                _note(self.rows[name], "_first", answer(self.model, cache, probe.stem), probe)
            yield
        for name in set(self.rows) - {*self.subjects, "full"}:  # it held the text, but not a question more
            del self.rows[name]
        for name, row in self.rows.items():
            if "recall" in self.arms:
                row["copy"] = copied(self.model, small[name], self.hay)
            if "perplexity" in self.arms:
                row["nll_after"] = continuation(self.model, small[name], self.hay.after)
        yield

    def _reader(self, ids: Sequence[int]) -> Cache:
        from holdall.dropins.transformers import Cache

        cache = Cache(self.lookback)
        read(self.model, cache, ids)
        return cache

    def _in_the_window(self, base: Cache, probe: Probe) -> None:
        asked = base.copy()
        read(self.model, asked, probe.question)
        for name, cache in self._shrunk(asked):
            latest = len(self.hay.context) + len(probe.question) - max(cache.lengths)
            self.rows[name].setdefault("outside", []).append(float(probe.end <= latest))
            logits = answer(self.model, cache, probe.stem)
            _note(self.rows[name], "", logits, probe)
            if name == "full" and "recall" in self.arms:  # nothing goes between the question and the answer
                _note(self.rows[name], "_late", logits, probe)

    def _late(self, small: dict[str, Cache], probe: Probe) -> None:
        for name in self.subjects if "needle" in self.arms else (*self.subjects, "full"):
            logits = answer(self.model, small[name].copy(), probe.question + probe.stem)
            _note(self.rows[name], "_late", logits, probe)

    def _shrunk(self, cache: Cache) -> Iterator[tuple[str, Cache]]:
        """A cache of each subject's size, one at a time, and at last the whole; `cache` stays as it is."""
        for name, (method, budget) in list(self.subjects.items()):
            try:
                made = cache.compressed(method, budget)
            except BudgetError as fault:
                if self.refused is None:
                    raise
                self.refused[name] = refusal(cache, method, Budget.parse(budget), fault)
                del self.subjects[name]
                continue
            yield name, made
        yield "full", cache.copy()


def _note(row: dict[str, Any], arm: str, logits: torch.Tensor, probe: Probe) -> None:
    for measure, hit in zip(("recall", "greedy"), found(logits, probe), strict=True):
        row.setdefault(measure + arm, []).append(hit)


def summary(texts: Sequence[Found], whole: str = "full") -> dict[str, dict[str, float]]:
    """Figures over several haystacks, each fact counted once; a figure over no facts is left out.

    recall, recall_late, recall_first (and greedy): over all facts that were asked. ..._known: over those that the
    `whole` cache answers when they are asked this way, so that its own figure is 1. recall_outside: over the known
    whose sentence lies before the latest entries, as many as the cache holds; outside: how many these are.
    """
    rows = {}
    base = _pooled([t[whole] for t in texts])
    for name in texts[0]:
        every = _pooled([t[name] for t in texts])
        row = {k: sum(v) / len(v) for k, v in every.items()}
        for arm in ("recall", "recall_late", "recall_first"):
            if arm not in every:
                continue
            known = [hit for hit, was in zip(every[arm], base[arm], strict=True) if was]
            if known:
                row[arm + "_known"] = sum(known) / len(known)
        if "outside" in every:
            places = zip(every["recall"], base["recall"], every["outside"], strict=True)
            outside = [hit for hit, was, out in places if was and out]
            row["outside"] = float(len(outside))
            if outside:
                row["recall_outside"] = sum(outside) / len(outside)
        if "nll_after" in row:
            row["perplexity"] = math.exp(row.pop("nll_after"))
        rows[name] = row
    return rows


def _pooled(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {k: [x for r in rows for x in (r[k] if isinstance(r[k], list) else [r[k]])] for k in rows[0]}


def reading_cost(net: Any, ids: list[int], method: KVSelector | None, budget: Spend) -> dict[str, float]:
    """Peak memory and CPU seconds of reading the text into a cache, which shrinks on the way."""
    from holdall.dropins.transformers import Cache
    from holdall.memory import release
    from holdall.meter import Meter

    release()
    held = Cache(method, budget)
    with Meter() as meter, torch.inference_mode():
        net(torch.tensor([ids]), past_key_values=held, logits_to_keep=1)
        held.compress()
    return {"peak_bytes": meter.peak_bytes, "cpu_seconds": meter.cpu_seconds}
