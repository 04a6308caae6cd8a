"""holdall grep: search logs that stay packed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from holdall.cli.output import JSON, as_json

Pattern = Annotated[str, typer.Argument(help="A regular expression (Python's), or plain text with -F.")]
Files = Annotated[list[str], typer.Argument(metavar="FILE.hold...", help="Packed logs: paths or URLs.")]
Numbers = Annotated[bool, typer.Option("-n", "--line-number", help="Print line numbers.")]
Count = Annotated[bool, typer.Option("-c", "--count", help="Print only how many lines match.")]
Extended = Annotated[
    bool, typer.Option("-E", "--extended-regexp", help="PATTERN is a regular expression (the default).")
]
Fixed = Annotated[bool, typer.Option("-F", "--fixed-strings", help="PATTERN is plain text.")]
Ignore = Annotated[bool, typer.Option("-i", "--ignore-case", help="Small and capital letters are alike.")]
_SPECIAL = set(".^$*+?{}[]\\|()")


def register(app: typer.Typer) -> None:
    app.command("grep")(grep)


def grep(
    pattern: Pattern,
    files: Files,
    line_number: Numbers = False,
    count: Count = False,
    extended: Extended = False,
    fixed: Fixed = False,
    ignore_case: Ignore = False,
    json: JSON = False,
) -> None:
    """Print the lines of packed logs that match, like grep: exit code 1 when there are none."""
    from holdall.errors import BadInput

    if extended and fixed:
        raise BadInput("options", "-E and -F", "one of them")
    plain = fixed or not _SPECIAL & set(pattern)
    total, told = 0, []
    for file in files:
        prefix = f"{file}:".encode() if len(files) > 1 else b""
        found = 0
        for number, line in _matches(file, pattern, not plain, ignore_case):
            found += 1
            if json and not count:
                told.append({"file": file, "line": number, "text": line.decode(errors="replace")})
            elif not count:
                sys.stdout.buffer.write(prefix + (b"%d:" % number if line_number else b"") + line + b"\n")
        if count and json:
            told.append({"file": file, "count": found})
        elif count:
            sys.stdout.buffer.write(prefix + b"%d\n" % found)
        total += found
    sys.stdout.buffer.flush()
    if json:
        as_json(told)
    if not total:
        raise typer.Exit(1)


def _matches(file: str, pattern: str, regex: bool, ignore_case: bool) -> Iterator[tuple[int, bytes]]:
    from holdall.errors import BadInput
    from holdall.logs.base import LogCodec
    from holdall.packed import Packed
    from holdall.verbs import method_of

    with Packed.open(file) as packed:
        method = method_of(packed, file)
        if not isinstance(method, LogCodec):
            raise BadInput("file", file, f"a packed log, not what {method.full_name()} packed")
        yield from method.grep(packed, pattern, regex=regex, ignore_case=ignore_case)
