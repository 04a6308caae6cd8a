"""holdall verify: is a `.hold` file whole?"""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from holdall.cli.output import JSON, as_json

Files = Annotated[list[str], typer.Argument(metavar="FILE.hold...", help="Paths or URLs.")]
Deep = Annotated[bool, typer.Option("--deep", help="Decode everything too.")]


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(files: Files, deep: Deep = False, json: JSON = False) -> None:
    """Compare every checksum of .hold files; the first damaged one ends in an error and exit code 2."""
    from holdall.cli.info import state_of
    from holdall.method import Method
    from holdall.packed import Packed
    from holdall.progress import track
    from holdall.vectors.folder import Folder
    from holdall.verbs import method_of, recipe_of

    done = []
    for file in track(files, "verifying"):
        if (state := state_of(file)) != file:
            with contextlib.closing(Folder.open(file)) as folder:
                name = Method.from_dict(folder.meta.get("method", {})).full_name()
                done.append({"file": file, "ok": True, "bytes": folder.check(), "sections": len(folder.arrays),
                             "method": name, "decoded": False})  # fmt: skip
            continue
        with Packed.open(state) as packed:
            packed.check()
            method = recipe_of(packed, file)  # adapters, for one, need their base to be decoded
            if deep:
                method_of(packed, file).decode(packed)
            done.append({"file": file, "ok": True, "bytes": packed.nbytes, "sections": len(packed.arrays),
                         "method": method.full_name(), "decoded": deep})  # fmt: skip
    if json:
        as_json(done[0] if len(done) == 1 else done)
        return
    for row in done:
        print(
            f"{row['file']}: whole, {row['sections']} sections, {row['bytes']:,} bytes{', decoded' if deep else ''}"
        )
