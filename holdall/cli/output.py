"""What verbs print: JSON for machines, plain lines and Rich tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]


def as_json(told: Any) -> None:
    print(json.dumps(told, indent=1, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """On a terminal a Rich table; in a pipe, tab-separated lines."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*head, title=title or None, box=SIMPLE, title_justify="left", pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
