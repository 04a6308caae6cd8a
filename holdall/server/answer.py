"""From tokens to the text of an answer, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdall.engine_text import Text

if TYPE_CHECKING:
    from holdall.dropins.tokenizer import Tokenizer


class Answer:
    """Takes tokens and gives text out; text that may be the start of a stop string waits until that is known."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._text = Text(tokenizer)
        self._stops = tuple(stops)
        self._held = ""
        self.tokens = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be shown now; nothing follows once `stopped`."""
        self.tokens += 1
        return self._shown(self._text.add(token))

    def rest(self) -> str:
        """What is left at the end."""
        shown = self._shown(self._text.rest())
        if self.stopped:
            return shown
        held, self._held = self._held, ""
        return shown + held

    def _shown(self, piece: str) -> str:
        if not self._stops:
            return piece
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` starts with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
