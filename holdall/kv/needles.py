"""Needles: ten plain facts in a long text, and whether a model still finds them when its cache has shrunk.

Two ways to ask. *In the window*: the cache shrinks after it has read the question, as at the end of a prompt. *Late*:
it shrinks when only the text is known, and all ten questions are put to what is left, as in a second turn. A fact
is found where its word is more likely than five others of its sort (chance: 1/6), and found greedily where it is the
likeliest of all tokens. Each candidate is judged by its first token; those of one fact all start differently.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.dropins.transformers import Cache
    from holdall.kv.base import KVSelector
else:
    torch = lazy("torch", extra="kv")

# (the fact up to its word, the question, the answer up to the word, six words); {} closes with the word.
_FACTS: tuple[tuple[str, str, str, str], ...] = (
    ("Margaret's favourite fruit is the", "What is Margaret's favourite fruit?", "Margaret's favourite fruit is the",
     "banana lemon cherry orange apple grape"),
    ("The old lighthouse in Dunmore was painted", "What colour was the old lighthouse in Dunmore painted?",
     "The old lighthouse in Dunmore was painted", "green red blue yellow white purple"),
    ("Professor Albrecht keeps a pet", "What pet does Professor Albrecht keep?", "Professor Albrecht keeps a pet",
     "rabbit snake horse monkey turtle bird"),
    ("The summer concert in Lindholm takes place on", "On which day does the summer concert in Lindholm take place?",
     "The summer concert in Lindholm takes place on", "Monday Tuesday Wednesday Thursday Friday Sunday"),
    ("The secret ingredient of Mrs. Patel's soup is", "What is the secret ingredient of Mrs. Patel's soup?",
     "The secret ingredient of Mrs. Patel's soup is", "garlic honey butter rice pepper milk"),
    ("The captain of the ship Aurora was born in", "In which country was the captain of the ship Aurora born?",
     "The captain of the ship Aurora was born in", "Norway Brazil Japan Egypt Canada India"),
    ("Little Tobias plays the", "Which instrument does little Tobias play?", "Little Tobias plays the",
     "piano violin guitar flute trumpet drums"),
    ("The statue in front of the Harwick library is made of",
     "What is the statue in front of the Harwick library made of?",
     "The statue in front of the Harwick library is made of", "bronze marble wood glass gold iron"),
    ("The number of towers of Castle Brennan is", "How many towers does Castle Brennan have?",
     "The number of towers of Castle Brennan is", "three four five seven eight nine"),
    ("Doctor Okafor works as a", "What does Doctor Okafor work as?", "Doctor Okafor works as a",
     "teacher lawyer farmer dentist pilot chef"),
)  # fmt: skip
_SEARCH = 40  # tokens that a fact may wait for the end of a sentence


@dataclass(frozen=True)
class Probe:
    """One question: ids of the question to the end of the prompt, of the answer's beginning, and of the words."""

    question: list[int]
    stem: list[int]
    words: list[int]
    right: int


@dataclass(frozen=True)
class Haystack:
    """A text with facts in it, its probes, and how the text goes on."""

    context: list[int]
    probes: list[Probe]
    after: list[int]


def haystack(tokenizer: Any, text: str, tokens: int = 2048, seed: int = 0, after: int = 128) -> Haystack:
    """Ten facts at even distances in `tokens` tokens of `text`, after the chat header; answers drawn by `seed`."""
    lot = random.Random(seed)
    head, tail = frame(tokenizer)
    chosen = lot.sample(_FACTS, len(_FACTS))
    facts, probes = [], []
    for told, question, stem, listed in chosen:
        words = listed.split()
        right = lot.randrange(len(words))
        facts.append(tokenizer.encode(f" {told} {words[right]}."))
        firsts = [tokenizer.encode(f" {w}")[0] for w in words]
        if len(set(firsts)) < len(firsts):
            raise BadInput(
                "tokenizer", f"the same first token in {words}", "one that tells these words apart"
            )
        probes.append(
            Probe(tokenizer.encode(f"\n\n{question}") + tail, tokenizer.encode(stem), firsts, right)
        )
    hay = tokenizer.encode(text)
    room = tokens - len(head) - sum(map(len, facts))
    if room < len(facts) * 8 or len(hay) < room + after:
        wanted = f"at least {room + after} tokens of text, and a context of 400 tokens or more"
        raise BadInput("haystack", f"{len(hay)} tokens of text for a context of {tokens}", wanted)
    start = lot.randrange(len(hay) - room - after + 1)
    hay = hay[start : start + room + after]
    return Haystack(_spread(tokenizer, head, hay[:room], facts), probes, hay[room:])


def _spread(tokenizer: Any, head: list[int], hay: list[int], facts: list[list[int]]) -> list[int]:
    context, last = list(head), 0
    for i, fact in enumerate(facts):
        at = (i + 1) * len(hay) // (len(facts) + 1)
        ends = (
            j
            for j in range(at, min(at + _SEARCH, len(hay)))
            if tokenizer.decode([hay[j]]).endswith((".", "\n"))
        )
        at = next(ends, at - 1) + 1
        context += hay[last:at] + fact
        last = at
    return context + hay[last:]


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the chat template puts before and behind what a user says."""
    a, b = (tokenizer.chat([{"role": "user", "content": word}]) for word in ("One", "Then"))
    before = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    behind = next(i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y)
    return a[:before], a[len(a) - behind :]


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


def continuation(model: Any, cache: Cache, after: list[int]) -> float:
    """Mean negative log-likelihood of the text's next tokens; the cache is used up."""
    with cache.appending(), torch.inference_mode():
        logits = model(torch.tensor([after]), past_key_values=cache).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(after[1:])))


Subjects = dict[str, tuple["KVSelector", Spend]]


def recall(
    model: Any, hay: Haystack, subjects: Subjects, lookback: KVSelector
) -> dict[str, dict[str, float]]:
    """Each subject's figures over one haystack; the text is read once for all. "full" is the whole cache.

    lookback: the method that looks back furthest among the subjects; it decides which queries are remembered.
    """
    from holdall.dropins.transformers import Cache

    base = Cache(lookback)
    read(model, base, hay.context)
    small = {name: base.compressed(*subject) for name, subject in subjects.items()}
    rows = {name: {"bytes": float(c.nbytes), "entries": float(c.lengths[0])} for name, c in small.items()}
    rows["full"] = {"bytes": float(base.nbytes), "entries": float(base.lengths[0])}
    totals = {name: dict.fromkeys(("recall", "greedy", "recall_late", "greedy_late"), 0.0) for name in rows}
    for probe in hay.probes:
        asked = base.copy()
        read(model, asked, probe.question)
        for name, subject in subjects.items():
            _add(totals[name], "", found(answer(model, asked.compressed(*subject), probe.stem), probe))
            late = answer(model, small[name].copy(), probe.question + probe.stem)
            _add(totals[name], "_late", found(late, probe))
        whole = found(answer(model, asked, probe.stem), probe)
        _add(totals["full"], "", whole)
        _add(totals["full"], "_late", whole)
    for name, row in rows.items():
        row |= {k: v / len(hay.probes) for k, v in totals[name].items()}
        row["nll_after"] = continuation(model, small.get(name, base), hay.after)
    return rows


def _add(total: dict[str, float], arm: str, hits: tuple[float, float]) -> None:
    total["recall" + arm] += hits[0]
    total["greedy" + arm] += hits[1]
