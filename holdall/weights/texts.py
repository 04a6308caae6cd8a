"""The default texts: the language reference that comes with Python, in two halves that share no topic."""

from __future__ import annotations

from functools import cache


def calibration_text() -> str:
    """What methods may learn from when the user gives no text: about half of the topics."""
    return _halves()[0]


def held_out_text() -> str:
    """What quality is measured on when the user gives no text: the topics that nothing was calibrated on."""
    return _halves()[1]


@cache
def _halves() -> tuple[str, str]:
    """Topics by name, each put on the side that is shorter so far.

    Topics repeat each other's paragraphs (over a quarter of them), so each paragraph is used once.
    """
    from pydoc_data.topics import topics

    sides: tuple[list[str], list[str]] = ([], [])
    sizes, seen = [0, 0], set()
    for name in sorted(topics):
        fresh = []
        for paragraph in topics[name].strip("\n").split("\n\n"):
            bare = " ".join(paragraph.split())
            if bare and bare not in seen:
                seen.add(bare)
                fresh.append(paragraph)
        side = 0 if sizes[0] <= sizes[1] else 1
        sides[side].extend(fresh)
        sizes[side] += sum(len(p) for p in fresh)
    return "\n\n".join(sides[0]), "\n\n".join(sides[1])
