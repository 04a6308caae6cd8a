"""holdall run: ask a model that fits into the memory you have."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json

ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .hold file, or any model that `pack` takes.")
]
Prompt = Annotated[str | None, typer.Argument(help="The question; text on standard input goes before it.")]
Memory = Annotated[str | None, typer.Option(help='What weights, context and workspace may take: "120MB".')]
KV = Annotated[str | None, typer.Option(help='What the context may keep: "25%" of it, or "40MB".')]
With = Annotated[str | None, typer.Option("--with", help="The method that holds the context (kv.snapkv).")]
ContextsFile = Annotated[
    str | None, typer.Option("--contexts", help="Documents to answer from, of `holdall cache add`.")
]
AdapterFile = Annotated[
    str | None, typer.Option("--adapter", help="A style or a task, of `holdall adapters train`.")
]
Most = Annotated[int, typer.Option("--max-new-tokens", "-n", help="The longest answer.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 is always the likeliest token.", min=0.0)]
Seed = Annotated[int, typer.Option(help="The same seed gives the same answer.")]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("run", context_settings=loose)(run)


def run(
    context: typer.Context,
    model: ModelPath,
    prompt: Prompt = None,
    memory: Memory = None,
    kv: KV = None,
    with_: With = None,
    contexts: ContextsFile = None,
    adapter: AdapterFile = None,
    max_new_tokens: Most = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    json: JSON = False,
) -> None:
    """Answer a question, within a memory budget.

    `holdall run small.hold --memory 120MB --kv 25% --with kv.snapkv "Who is Ahab?" < book.txt`
    Options of the kv method are its fields, as with pack.
    `holdall run small.hold --contexts docs.hold "Who is Ahab?"` answers from documents that it read before.
    `holdall run small.hold --adapter style.hold "Who is Ahab?"` answers with what an adapter has learned.
    """
    from holdall.cli.knobs import separate
    from holdall.engine import Engine
    from holdall.engine_plan import libraries
    from holdall.errors import BadInput
    from holdall.meter import Meter

    words, options = separate(context.args)
    if words:
        raise BadInput("prompt", words[0], "one argument (put quotes around it)")
    method = kv_method(with_, kv, options)
    if contexts is not None and method is not None:
        raise BadInput("--contexts", "a kv method besides", "one of both: contexts are held as they are")
    if contexts is not None and adapter is not None:
        raise BadInput("--adapter", "contexts besides", "one of both: contexts were read without it")
    question = _asked(prompt)
    libraries(model, method)
    with Meter() as meter:
        engine = (
            Engine.open(model, memory, method, kv, adapter)
            if contexts is None
            else _over(model, contexts, memory)
        )
        answer = []
        for piece in engine.generate(question, max_new_tokens, temperature, seed):
            answer.append(piece)
            if not json:
                print(piece, end="", flush=True)
    figures: dict[str, Any] = {**engine.stats.figures(), **meter.figures()}
    if json:
        as_json({"answer": "".join(answer), "model": model, "memory": memory, "kv": kv, **figures})
        return
    print()
    if sys.stderr.isatty():
        print(_line(figures), file=sys.stderr)


def _over(model: str, contexts: str, memory: str | None) -> Any:
    from holdall.engine_contexts import ContextEngine

    return ContextEngine.over(model, contexts, memory)


def kv_method(with_: str | None, kv: str | None, options: list[Any]) -> Any:
    """The method that holds the context, with its options; None: everything is kept."""
    from holdall.errors import BadInput
    from holdall.registry import get

    if with_ is None:
        if options:
            raise BadInput(
                "option", options[0][0], "options of `holdall run`, or --with METHOD and its fields"
            )
        return get("kv.snapkv")() if kv is not None else None
    from holdall.cli.knobs import configured

    cls = get(with_)
    if cls.room != "kv" or cls.kind != "selector":
        raise BadInput("--with", with_, "a selector of the room kv (holdall methods kv)")
    method, spare = configured(cls, options)
    if spare:
        raise BadInput("option", spare[0], "the prompt before the options")
    return method


def _asked(prompt: str | None) -> str:
    """Text that is piped in, then the question."""
    from holdall.errors import BadInput

    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if not piped.strip() and not prompt:
        raise BadInput("prompt", "nothing", "a question, or text on standard input")
    return "\n\n".join(part for part in (piped.strip(), prompt) if part)


def _line(figures: dict[str, Any]) -> str:
    from holdall.errors import human_bytes

    return (
        f"[{figures['prompt_tokens']} tokens read in {figures['prefill_seconds']:.1f} s, {figures['new_tokens']} "
        f"written at {figures['tokens_per_second']:.1f} a second, context {human_bytes(figures['kv_bytes'])} of "
        f"{human_bytes(figures['kv_full_bytes'])}, peak {human_bytes(figures['peak_bytes'])}]"
    )
