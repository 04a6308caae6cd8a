"""Needles: ten plain facts in a long text of the user's, questions about them, and passages to be copied."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from holdall.errors import BadInput

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
PASSAGES, SHOWN, REPEATED = 4, 16, 48  # how many are copied; tokens of each that are given, and asked for


@dataclass(frozen=True)
class Probe:
    """One question: ids of the question to the end of the prompt, of the answer's beginning, and of the words.

    ahead: ids of the question where it stands before the text. end: the column of the text behind the fact.
    """

    question: list[int]
    ahead: list[int]
    stem: list[int]
    words: list[int]
    right: int
    end: int


@dataclass(frozen=True)
class Haystack:
    """A text with facts in it, its probes, how the text goes on, and the chat's header and closing words."""

    context: list[int]
    probes: list[Probe]
    after: list[int]
    header: int  # tokens of the context
    closing: list[int]

    def asked_first(self, probe: Probe) -> list[int]:
        """The prompt with the question before the text."""
        return self.context[: self.header] + probe.ahead + self.context[self.header :] + self.closing

    def some(self, count: int) -> list[Probe]:
        """`count` of the probes, at even distances."""
        return [self.probes[(2 * i + 1) * len(self.probes) // (2 * count)] for i in range(count)]

    def passages(self) -> list[list[int]]:
        """Parts of the text that are to be copied, each with its beginning."""
        starts = [(2 * i + 1) * len(self.context) // (2 * PASSAGES) for i in range(PASSAGES)]
        return [self.context[at : at + SHOWN + REPEATED] for at in starts]


def haystack(tokenizer: Any, text: str, tokens: int = 2048, seed: int = 0, after: int = 128) -> Haystack:
    """Ten facts at even distances in `tokens` tokens of `text`, after the chat header; answers drawn by `seed`."""
    lot = random.Random(seed)
    head, tail = frame(tokenizer)
    chosen = lot.sample(_FACTS, len(_FACTS))
    facts, asked = [], []
    for told, question, stem, listed in chosen:
        words = listed.split()
        right = lot.randrange(len(words))
        facts.append(tokenizer.encode(f" {told} {words[right]}."))
        firsts = [tokenizer.encode(f" {w}")[0] for w in words]
        if len(set(firsts)) < len(firsts):
            raise BadInput(
                "tokenizer", f"the same first token in {words}", "one that tells these words apart"
            )
        last, first = tokenizer.encode(f"\n\n{question}") + tail, tokenizer.encode(f"{question}\n\n")
        asked.append((last, first, tokenizer.encode(stem), firsts, right))
    hay = tokenizer.encode(text)
    room = tokens - len(head) - sum(map(len, facts))
    if room < len(facts) * 8 or len(hay) < room + after:
        wanted = f"at least {room + after} tokens of text, and a context of 400 tokens or more"
        raise BadInput("haystack", f"{len(hay)} tokens of text for a context of {tokens}", wanted)
    start = lot.randrange(len(hay) - room - after + 1)
    hay = hay[start : start + room + after]
    context, ends = _spread(tokenizer, head, hay[:room], facts)
    probes = [Probe(*each, end) for each, end in zip(asked, ends, strict=True)]
    return Haystack(context, probes, hay[room:], len(head), tail)


def _spread(
    tokenizer: Any, head: list[int], hay: list[int], facts: list[list[int]]
) -> tuple[list[int], list[int]]:
    """The text with the facts in it, and the column behind each fact."""
    context, behind, last = list(head), [], 0
    for i, fact in enumerate(facts):
        at = (i + 1) * len(hay) // (len(facts) + 1)
        ends = (
            j
            for j in range(at, min(at + _SEARCH, len(hay)))
            if tokenizer.decode([hay[j]]).endswith((".", "\n"))
        )
        at = next(ends, at - 1) + 1
        context += hay[last:at] + fact
        behind.append(len(context))
        last = at
    return context + hay[last:], behind


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the chat template puts before and behind what a user says."""
    a, b = (tokenizer.chat([{"role": "user", "content": word}]) for word in ("One", "Then"))
    before = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    behind = next(i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y)
    return a[:before], a[len(a) - behind :]
