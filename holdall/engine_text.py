"""From scores to text: choosing the next token, and giving text out only where a character is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.dropins.tokenizer import Tokenizer
else:
    torch = lazy("torch", extra="weights")

_SMALL = 1e-6  # a temperature that nothing but the best token survives
_HOLD = 8  # tokens after which a broken character is given out as it is


class Chooser:
    """The next token: the best one at temperature 0, else one drawn with probability softmax(scores / temperature).

    top_p: only the likeliest tokens are drawn from, as few as have this probability together.
    """

    def __init__(self, temperature: float = 0.0, seed: int = 0, top_p: float = 1.0):
        if not 0 <= temperature < float("inf"):
            raise BadInput("temperature", temperature, "0 (the best token) or more")
        if not 0 < top_p <= 1:
            raise BadInput("top_p", top_p, "more than 0 and at most 1")
        self.temperature, self.top_p = temperature, top_p
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, scores: torch.Tensor) -> int:
        """scores: [V]."""
        if self.temperature < _SMALL:
            return int(scores.argmax())
        scores = scores.float()  # less the best: a small temperature must not divide into infinities
        chances = torch.softmax((scores - scores.max()) / self.temperature, dim=-1)
        if self.top_p < 1:
            likely, order = chances.sort(descending=True)
            before = likely.cumsum(0)[:-1]
            chances = chances.index_fill(0, order[1:][before >= self.top_p], 0.0)  # the best one always stays
        return int(torch.multinomial(chances, 1, generator=self._random))


class Text:
    """Takes tokens one by one and gives the text that they complete; a character may span several tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = (
            0  # of the ids, those whose text is out; they stay one round for the spaces between words
        )
        self._start = 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._new(final=False)

    def rest(self) -> str:
        """What is left at the end, whole or not."""
        return self._new(final=True)

    def _new(self, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        now = self._tokenizer.decode(self._ids[self._start :])
        waiting = now.endswith("\ufffd") and len(self._ids) - self._shown < _HOLD
        if (waiting and not final) or len(now) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]
