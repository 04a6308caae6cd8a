"""What a search looks for, and the lines that it looks through."""

from __future__ import annotations

import re
from collections.abc import Iterator

from holdall.errors import BadInput


def needle(pattern: str | bytes, regex: bool, ignore_case: bool) -> re.Pattern[bytes]:
    """The pattern, as `re` over bytes. Text is taken as UTF-8."""
    raw = pattern.encode() if isinstance(pattern, str) else bytes(pattern)
    try:
        return re.compile(raw if regex else re.escape(raw), re.IGNORECASE if ignore_case else 0)
    except re.error as fault:
        raise BadInput("pattern", repr(pattern), f"a regular expression of Python's re ({fault})") from fault


def whole_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their ends; a line may go on over pieces."""
    rest: list[bytes] = []
    for piece in pieces:
        *lines, tail = piece.split(b"\n")
        if lines:
            lines[0], rest = b"".join([*rest, lines[0]]), []
        yield from lines
        rest.append(tail)
    if any(rest):
        yield b"".join(rest)
