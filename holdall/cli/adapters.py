"""holdall adapters: a style or a task for a model, in kilobytes beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table

if TYPE_CHECKING:
    from holdall.weights.binary_adapters import BinaryAdapters

ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .hold file, or any model that `pack` takes.")
]
AdapterPath = Annotated[str, typer.Argument(metavar="ADAPTER", help="What `holdall adapters train` wrote.")]
Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Adapters, or globs.")]
TextPath = Annotated[str, typer.Option("--text", help="A text to learn; its last tenth is kept to judge on.")]
JudgeText = Annotated[
    str | None, typer.Option("--text", help="A text to measure on; none: Python's language reference.")
]
Out = Annotated[str, typer.Option("--output", "-o", help="The adapter.")]
MergedOut = Annotated[
    str, typer.Option("--output", "-o", help="A .hold file, a .safetensors file or a new folder.")
]
BudgetText = Annotated[
    str | None, typer.Option("--budget", "-b", help='Of the adapter: "20kB"; none: a width of 32.')
]
MergedBudget = Annotated[
    str | None,
    typer.Option("--budget", "-b", help="Of a .hold file; none: what the model's has, and 2 % more."),
]
Steps = Annotated[int, typer.Option(help="Batches that are learned.", min=1)]
Window = Annotated[int, typer.Option(help="Tokens of a window.", min=2)]
Batch = Annotated[int, typer.Option(help="Windows of a batch.", min=1)]
Seed = Annotated[int, typer.Option(help="The same seed gives the same adapter.")]
Sweep = Annotated[
    bool, typer.Option("--sweep", help="Try scales .01 to 10 and keep the best: four runs more.")
]
verb = typer.Typer(name="adapters", help="A style or a task for a model, in kilobytes.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    verb.command("train", context_settings=loose)(train)
    verb.command("list")(list_)
    verb.command("merge")(merge)
    app.add_typer(verb)


def train(
    context: typer.Context,
    model: ModelPath,
    text: TextPath,
    output: Out,
    budget: BudgetText = None,
    steps: Steps = 100,
    window: Window = 128,
    batch: Batch = 2,
    seed: Seed = 0,
    sweep: Sweep = False,
    json: JSON = False,
) -> None:
    """Let a model learn a text, in an adapter beside it; the model stays as it is, packed or not.

    Options are the fields of weights.binary_adapters:
    `holdall adapters train small.hold --text style.txt -o style.hold --budget 20kB --placement lora --bits 1`
    """
    from holdall.budget import Budget
    from holdall.cli.knobs import separate
    from holdall.errors import human_bytes
    from holdall.meter import Meter
    from holdall.weights.adapter_text import Shown, Windows, base, parted

    words, options = separate(context.args)
    recipe = _recipe(words, options)
    Budget.parse(budget)
    content = _content(text, output, model)
    with Meter() as meter:
        net, tokenizer = base(model)
        ids, held = parted(tokenizer, content, window)
        batches = Shown(Windows(ids, window, batch, steps, seed))
        if sweep:
            recipe, _ = recipe.swept(net, batches, held, budget, seed=seed)
        trained = recipe.fit(net, batches, budget, seed=seed, held_out=held)
        trained.packed.save(output)
    told = {"model": model, **_told(output, trained.packed), **meter.figures()}
    if json:
        as_json(told)
        return
    print(
        f"{model} + {text} -> {output}  {human_bytes(told['bytes'])}  {told['bits']} bit, width {told['width']}, "
        f"{told['placement']}, scale {told['scale']:g}"
    )
    print(
        f"perplexity of its last tenth {told['perplexity_before']:.4g} -> {told['perplexity_after']:.4g}  "
        f"{steps} steps, {meter.seconds:.1f} s, peak {human_bytes(meter.peak_bytes)}"
    )


def list_(files: Files, json: JSON = False) -> None:
    """List adapters: bits, width, bytes, the base that each belongs to, and what was measured."""
    from holdall.packed import Packed

    rows = []
    for name in (found for given in files for found in _found(given)):
        with Packed.open(name) as packed:
            rows.append(_told(name, packed))
    if json:
        as_json(rows)
        return
    cells = [
        [r["file"], f"{r['bits']} bit", f"width {r['width']}", r["placement"], f"{r['bytes']:,} bytes", r["base"],
         f"perplexity {r['perplexity_before']:.4g} -> {r['perplexity_after']:.4g}"]
        for r in rows
    ]  # fmt: skip
    table(["file", "bits", "width", "placement", "bytes", "base", "measured"], cells)


def merge(
    model: ModelPath,
    adapter: AdapterPath,
    output: MergedOut,
    budget: MergedBudget = None,
    text: JudgeText = None,
    json: JSON = False,
) -> None:
    """Fold an adapter of queries and values (placement lora) into the model's own weights.

    A packed model is packed again as it was, which rounds what was added: the loss of that is measured, beside the
    model with the adapter.
    """
    from holdall.errors import human_bytes
    from holdall.packed import Packed
    from holdall.places import size
    from holdall.weights.adapter_merge import write_merged
    from holdall.weights.adapter_text import base
    from holdall.weights.binary_adapters import BinaryAdapters
    from holdall.weights.perplexity import compare, spread
    from holdall.weights.texts import held_out_text

    content = held_out_text() if text is None else _content(text, output, model)
    _elsewhere(output, model, adapter)
    net, tokenizer = base(model)
    with Packed.open(adapter) as packed:
        adapted = BinaryAdapters().load(packed, net)
    write_merged(model, adapted, output, budget)
    tokens = spread(tokenizer.encode(content), 4, 256)
    figures = compare(adapted, base(output)[0], tokens)
    before = compare(adapted, net, tokens)
    told: dict[str, Any] = {
        "output": output,
        "bytes": size(output),
        "perplexity_without": before["perplexity"],
        "kl_without": before["kl"],
        **figures,
    }
    if json:
        as_json(told)
        return
    print(f"{model} + {adapter} -> {output}  {human_bytes(told['bytes'])}")
    print(
        f"beside the model with the adapter: perplexity x{told['perplexity_ratio']:.4f}, KL {told['kl']:.2g} "
        f"(without the adapter: {told['kl_without']:.2g}), same top token {told['top1']:.3f}"
    )


def _recipe(words: list[str], options: list[Any]) -> BinaryAdapters:
    from holdall.cli.knobs import configured
    from holdall.errors import BadInput
    from holdall.weights.binary_adapters import BinaryAdapters

    found, spare = configured(BinaryAdapters, options)
    if words or spare:
        raise BadInput("argument", (words or spare)[0], "one MODEL, and options")
    recipe: BinaryAdapters = found
    named = {option.lstrip("-") for option, _ in options}
    return recipe if "epochs" in named else recipe.but(epochs=1)


def _content(text: str, output: str, model: str) -> str:
    from holdall.errors import BadInput
    from holdall.files import open_stream

    _elsewhere(output, text, model)
    with open_stream(text) as f:
        raw = f.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise BadInput("text", text, f"UTF-8 (byte {fault.start} is none)") from fault


def _elsewhere(output: str, *inputs: str) -> None:
    """Before the work: the output is no input, and its folder is there."""
    from holdall.errors import BadInput
    from holdall.files import is_local, local_path
    from holdall.verbs import same_file

    if any(same_file(output, given) for given in inputs):
        raise BadInput("output", output, "another file than the inputs")
    if is_local(output) and not local_path(output).parent.is_dir():
        raise BadInput("output", output, f"a folder that exists ({local_path(output).parent} does not)")


def _told(name: str, packed: Any) -> dict[str, Any]:
    from holdall.errors import BadInput

    method, report = packed.meta.get("method"), packed.meta.get("report", {}).get("rows", {})
    if not isinstance(method, dict) or method.get("method") != "weights.binary_adapters":
        raise BadInput("adapter", name, "a file that `holdall adapters train` wrote")
    before, after = (float(report.get(k, {}).get("loss", math.nan)) for k in ("base", "adapted"))
    return {
        "file": name, "bytes": packed.nbytes, "bits": method["bits"], "width": packed.meta["width"],
        "placement": method["placement"], "scale": method["scale"], "head": packed.meta["head"],
        "base": packed.meta["base"], "loss_before": before, "loss_after": after,
        "perplexity_before": math.exp(before), "perplexity_after": math.exp(after),
    }  # fmt: skip


def _found(name: str) -> list[str]:
    from holdall.errors import BadInput
    from holdall.places import glob, is_file

    found = [name] if is_file(name) else glob(name)
    if not found:
        raise BadInput("file", name, "an adapter, or a pattern that matches one")
    return found
