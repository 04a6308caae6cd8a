"""holdall unpack: what was packed, back as a file."""

from __future__ import annotations

from typing import Annotated

import typer

from holdall.cli.output import JSON, as_json

File = Annotated[str, typer.Argument(metavar="FILE.hold", help="A path or URL.")]
Out = Annotated[
    str | None, typer.Option("--output", "-o", help="Where to; without it the name loses its .hold.")
]


def register(app: typer.Typer) -> None:
    app.command("unpack")(unpack)


def unpack(file: File, output: Out = None, json: JSON = False) -> None:
    """Decode a .hold file: logs come back byte for byte, models as .safetensors or a new folder."""
    from holdall import verbs
    from holdall.errors import human_bytes
    from holdall.meter import Meter
    from holdall.places import size

    target = output or _derived(file)
    with Meter() as meter:
        verbs.unpack(file, target)
    row = {"input": file, "output": target, "bytes": size(target), **meter.figures()}
    if json:
        as_json(row)
    else:
        print(f"{file} -> {target}  {human_bytes(size(target))}  {meter.seconds:.1f} s")


def _derived(file: str) -> str:
    from holdall.errors import BadInput
    from holdall.places import is_file, is_folder

    name = file.removesuffix(".hold")
    if name == file or is_file(name) or is_folder(name):
        raise BadInput("output", name, "a name with -o: this one is taken")
    return name
