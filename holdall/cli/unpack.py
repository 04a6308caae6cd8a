"""holdall unpack: what was packed, back as a file."""

from __future__ import annotations

from typing import Annotated

import typer

from holdall.cli.output import JSON, as_json

File = Annotated[str, typer.Argument(metavar="FILE.hold", help="A path or URL.")]
Out = Annotated[
    str | None, typer.Option("--output", "-o", help="Where to; without it the name loses its .hold.")
]
Form = Annotated[
    str | None,
    typer.Option(
        "--gguf",
        help="With -o model.gguf: the type of matrices whose grid GGUF does not have (Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, "
        "F16, BF16, F32); without it they are refused.",
        metavar="TYPE",
    ),
]


def register(app: typer.Typer) -> None:
    app.command("unpack")(unpack)


def unpack(file: File, output: Out = None, gguf: Form = None, json: JSON = False) -> None:
    """Decode a .hold file: logs come back byte for byte, models as .safetensors, .gguf or a new folder."""
    from holdall import verbs
    from holdall.errors import human_bytes
    from holdall.meter import Meter
    from holdall.places import size

    target = output or _derived(file)
    with Meter() as meter:
        verbs.unpack(file, target, gguf)
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
