"""holdall index: vectors into a folder that can be searched, and changes to one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json
from holdall.cli.tenants import Grant, Revoke, Tenant, Tenants

Source = Annotated[
    str, typer.Argument(metavar="VECTORS", help="A file of vectors (path or URL), or an index to change.")
]
Out = Annotated[str | None, typer.Option("--output", "-o", help="The folder of the new index.")]
With = Annotated[str, typer.Option("--with", help="The method.", metavar="METHOD")]
Memory = Annotated[
    str | None, typer.Option("--memory", "-m", help='What searching may hold: "64MB", "10%" of the vectors.')
]
Name = Annotated[
    str | None, typer.Option("--column", help="Which array, tensor or column of a file with several.")
]
IdsFile = Annotated[str | None, typer.Option("--ids", help="A .npy of ids, or a text with one on each line.")]
Add = Annotated[str | None, typer.Option("--add", help="A file of vectors that the index takes in.")]
Remove = Annotated[
    str | None, typer.Option("--remove", help="Ids to forget: a .npy, or a text with one a line.")
]

Tune = Annotated[
    str | None,
    typer.Option("--tune", help="Queries like those to come: `search --recall` goes by what they find."),
]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("index", context_settings=loose)(index)


# longer than forty lines, as is `search`: options and the help text are part of the function
def index(
    context: typer.Context,
    source: Source,
    output: Out = None,
    with_: With = "vectors.spann",
    memory: Memory = None,
    column: Name = None,
    ids: IdsFile = None,
    add: Add = None,
    remove: Remove = None,
    tune: Tune = None,
    tenants: Tenants = None,
    grant: Grant = None,
    revoke: Revoke = None,
    tenant: Tenant = None,
    json: JSON = False,
) -> None:
    """Make vectors searchable in a folder, or add some to it, or remove some.

    `holdall index vectors.npy --memory 64MB -o v.index`: .npy, .npz, .fvecs, .bvecs, .ivecs, .safetensors, .parquet and
    .arrow files, larger than memory too; a column "id" names them, other columns serve `search --where`.
    `holdall index v.index --add more.npy` and `--remove ids.txt` change one, whole or not at all. A build that was
    killed goes on when the same command is given again.

    `holdall index vectors.npy --with vectors.curator --tenants who.csv -o v.index` makes one that tenants share, and
    `holdall index v.index --grant ids.txt --tenant acme` lets a tenant find more.
    """
    from holdall.cli.knobs import separate
    from holdall.errors import BadInput
    from holdall.meter import Meter

    words, options = separate(context.args)
    if words:
        raise BadInput("argument", words[0], "one file of vectors, and options")
    with Meter() as meter:
        changes = any(x is not None for x in (add, remove, grant, revoke))
        if not changes and (tune is None or output is not None):
            if output is None:
                raise BadInput("output", "none", "-o and a folder, or --add, --remove or --tune for an index")
            told = _made(source, output, _recipe(with_, options), memory, column, ids, tune, tenants)
        else:
            if options or output is not None:
                raise BadInput(
                    "option",
                    options[0][0] if options else "-o",
                    "none: --add, --remove and --tune change an index",
                )
            told = _changed(source, add, remove, column, ids, tune, (tenants, grant, revoke, tenant))
    told |= {"seconds": meter.seconds, "cpu_seconds": meter.cpu_seconds, "peak_bytes": meter.peak_bytes}
    if json:
        as_json(told)
        return
    print(_line(told))


def _recipe(name: str, options: list[Any]) -> Any:
    from holdall.cli.knobs import configured
    from holdall.errors import BadInput
    from holdall.kinds import Index
    from holdall.registry import get

    cls = get(name)
    if not issubclass(cls, Index):
        raise BadInput("method", name, "an index (holdall methods vectors)")
    method, spare = configured(cls, options)
    if spare:
        raise BadInput("argument", spare[0], "one file of vectors, and options")
    return method


def _made(
    source: str,
    output: str,
    method: Any,
    memory: str | None,
    column: str | None,
    ids: str | None,
    tune: str | None,
    tenants: str | None,
) -> dict[str, Any]:
    from holdall.cli.tenants import given

    with method.source(source, column) as vectors:
        names = None if ids is None else listed(ids)
        called = vectors.ids if names is None else names
        who = given(method, tenants, source, called is not None and called.dtype.kind == "U")
        with method.build(vectors, memory, names, to=output, **who) as made:
            _tuned(made, tune)
            return {
                "index": output,
                "method": method.full_name(),
                "vectors_bytes": vectors.nbytes,
                **_told(made),
            }


def _changed(
    url: str,
    add: str | None,
    remove: str | None,
    column: str | None,
    ids: str | None,
    tune: str | None,
    rights: tuple[str | None, ...],
) -> dict[str, Any]:
    """rights: --tenants, --grant, --revoke, --tenant."""
    from holdall.cli.tenants import changed, joining
    from holdall.vectors.building import opened

    with opened(url) as there:
        gone = there.remove(listed(remove, there.ids.text)) if remove is not None else 0
        before = there.count
        if add is not None:
            with there.recipe.source(add, column) as vectors:
                names = None if ids is None else listed(ids, there.ids.text)
                table = vectors.attributes() if there.attributes is not None else None
                there.add(vectors, names, table, **joining(there, rights[0], rights[3], add))
        told = changed(there, *rights[1:])
        _tuned(there, tune)
        method = there.recipe.full_name()
        return {
            "index": url,
            "method": method,
            "added": there.count - before,
            "removed": gone,
            **told,
            **_told(there),
        }


def _tuned(there: Any, queries: str | None) -> None:
    if queries is not None:
        with there.recipe.source(queries) as asked:
            there.tune(asked.cut(0, asked.count))


def _told(made: Any) -> dict[str, Any]:
    from pathlib import Path

    from holdall.files import local_path

    disk = sum(p.stat().st_size for p in Path(local_path(made.folder.url)).iterdir())
    return {"count": made.count, "dim": made.dim, "memory_bytes": made.nbytes, "disk_bytes": disk}


def _line(told: dict[str, Any]) -> str:
    from holdall.errors import human_bytes

    names = [n for n in ("added", "removed", "granted", "revoked") if n in told]
    change = "  " + ", ".join(f"{told[n]:,} {n}" for n in names) if names else ""
    sizes = f"memory {human_bytes(told['memory_bytes'])}, disk {human_bytes(told['disk_bytes'])}"
    return (
        f"{told['index']}: {told['count']:,} vectors of {told['dim']}{change}  {sizes}  {told['method']}  "
        f"{told['seconds']:.1f} s, peak {human_bytes(told['peak_bytes'])}"
    )


def listed(path: str, text: bool | None = None) -> Any:
    """Ids of a file. text: whether they are strings; None: they are, unless all are whole numbers."""
    import numpy as np

    from holdall.errors import BadInput
    from holdall.files import open_stream

    with open_stream(path) as f:
        raw = f.read()
    if raw[:6] == b"\x93NUMPY":
        import io

        return np.load(io.BytesIO(raw), allow_pickle=False)
    try:
        lines = raw.decode().splitlines()
    except UnicodeDecodeError as fault:
        raise BadInput("ids", path, f"UTF-8 (byte {fault.start} is none)") from fault
    whole = all(line.strip().removeprefix("-").isdigit() for line in lines)
    if text is False and not whole:
        raise BadInput("ids", path, "whole numbers, one a line, as the index has")
    return np.array([int(line) for line in lines] if whole and not text else lines)
