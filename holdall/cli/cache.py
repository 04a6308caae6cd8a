"""holdall cache: documents that a model has read, kept on disk for `holdall run --contexts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table

if TYPE_CHECKING:
    from holdall.packed import Packed

File = Annotated[str, typer.Argument(metavar="FILE.hold", help="A file of contexts.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="As `holdall cache list` tells them.")]
Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="Text files, URLs or globs.")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="The model that reads them and will answer.")]
Out = Annotated[
    str, typer.Option("--output", "-o", help="The file of contexts: a new one, or one to add to.")
]
BudgetText = Annotated[
    str | None, typer.Option("--budget", "-b", help="Of the whole file; none: 16 bits a number.")
]
verb = typer.Typer(name="cache", help="Documents that a model has read, kept on disk.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    verb.command("add", context_settings=loose)(add)
    verb.command("list")(list_)
    verb.command("remove")(remove)
    app.add_typer(verb)


def add(texts: Texts, model: ModelName, output: Out, budget: BudgetText = None, json: JSON = False) -> None:
    """Let a model read documents, each alone, and keep what it remembers of them.

    A document that is there already is not read again; one that changed is. Options are the fields of kv.ape:
    `holdall cache add docs/*.txt --model smollm2 -o docs.hold --temperature 0.9`
    """
    from holdall.cli.knobs import separate
    from holdall.cli.pack import expand
    from holdall.dropins.hub import present
    from holdall.dropins.identity import identity
    from holdall.engine import Engine
    from holdall.errors import human_bytes
    from holdall.kv.documents import Documents, digest
    from holdall.meter import Meter

    given, options = separate(texts)
    found = {name: _text(name) for name in expand(given)}
    present(model)
    method, old = _begun(output, options)
    with Meter() as meter:
        engine = Engine.open(model)
        mine = identity(model)
        x = Documents.of(lambda: _weights(engine), engine.tokenizer, found, mine, old)
        before = set() if old is None else {r["digest"] for r in old.meta["contexts"]["documents"]}
        packed = method.encode(x, budget, to=output)
    rows = [
        {"document": name, "tokens": len(ids), "read": digest(ids) not in before}
        for name, ids in x.texts.items()
    ]
    total = sum(r["tokens"] for r in packed.meta["contexts"]["documents"])
    told = {"file": output, "bytes": packed.nbytes, "tokens": total, "documents": rows, **meter.figures()}
    packed.close()
    if json:
        as_json(told)
        return
    for r in rows:
        print(f"{r['document']}  {r['tokens']:,} tokens  {'read' if r['read'] else 'there already'}")
    print(f"{output}: {human_bytes(told['bytes'])}, {total:,} tokens, {meter.seconds:.1f} s")


def list_(file: File, json: JSON = False) -> None:
    """List the documents of a file of contexts."""
    from holdall.engine_contexts import method_of_contexts
    from holdall.packed import Packed

    with Packed.open(file) as packed:
        method_of_contexts(packed, file)
        told = packed.meta["contexts"]
        sizes = {s.name: s.stop - s.start for s in packed.arrays.sections}  # type: ignore[attr-defined]
    rows = [
        {"document": r["name"], "tokens": r["tokens"],
         "bytes": sum(size for name, size in sizes.items() if name.startswith(f"d/{r['digest']}/"))}
        for r in told["documents"]
    ]  # fmt: skip
    if json:
        as_json({"file": file, "model": told["model"], "prefix": told["prefix"]["tokens"], "documents": rows})
        return
    cells = [[str(r["document"]), f"{r['tokens']:,}", f"{r['bytes']:,}"] for r in rows]
    table(["document", "tokens", "bytes"], cells)


def remove(file: File, names: Names, json: JSON = False) -> None:
    """Take documents out of a file of contexts; the file gets smaller."""
    from holdall.engine_contexts import method_of_contexts
    from holdall.errors import human_bytes
    from holdall.kv.contexts_file import without
    from holdall.packed import Packed

    with Packed.open(file) as packed:
        method_of_contexts(packed, file)
        left = without(packed, names, file)
    told: dict[str, Any] = {
        "file": file,
        "bytes": left.nbytes,
        "documents": len(left.meta["contexts"]["documents"]),
    }
    left.close()
    if json:
        as_json(told)
    else:
        print(f"{file}: {human_bytes(told['bytes'])}, {told['documents']} documents")


def _text(name: str) -> str:
    from holdall.errors import BadInput
    from holdall.files import open_stream

    with open_stream(name) as f:
        raw = f.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise BadInput("document", name, f"text in UTF-8 (byte {fault.start} is none)") from fault


def _begun(output: str, options: list[Any]) -> tuple[Any, Packed | None]:
    """The recipe, and the file if there is one; its own recipe goes on unless options say otherwise."""
    from holdall.cli.knobs import configured
    from holdall.engine_contexts import method_of_contexts
    from holdall.errors import BadInput
    from holdall.kv import APE
    from holdall.packed import Packed
    from holdall.places import is_file

    asked, spare = configured(APE, options)
    if spare:
        raise BadInput("option", spare[0], "documents before the options")
    if not is_file(output):
        return asked, None
    old = Packed.open(output)
    named = [option.lstrip("-").replace("-", "_") for option, _ in options]
    return method_of_contexts(old, output).but(**{name: getattr(asked, name) for name in named}), old


def _weights(engine: Any) -> Any:
    """The running model, opened only if there is something to read."""
    engine.prepare(1, 1)
    return engine.net
