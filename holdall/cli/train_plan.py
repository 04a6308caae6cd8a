"""holdall train-plan: what each way of training a model would need, before it is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from holdall.cli.output import JSON, as_json, table

ModelPath = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A .gguf or .safetensors file, a Hugging Face folder, or smollm2."),
]
Memory = Annotated[str, typer.Option("--memory", help='What a process may hold: "6GB".')]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Sequences in a batch of one process.")]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens of a sequence.")]
Workers = Annotated[str, typer.Option("--workers", help="Numbers of processes for ZeRO, commas between.")]


def register(app: typer.Typer) -> None:
    app.command("train-plan")(train_plan)


def train_plan(
    model: ModelPath,
    memory: Memory,
    batch: Batch = 1,
    length: Length = 512,
    workers: Workers = "2,4,8",
    json: JSON = False,
) -> None:
    """Tell what each way of training would hold in memory and on disk, and which of them fit.

    In float32 with AdamW, activations counted by a run without numbers. Only the model's description is read.
    `holdall.training.fit_training` measures and chooses.
    """
    from holdall.budget import Budget
    from holdall.dropins import hub
    from holdall.errors import BadInput, human_bytes
    from holdall.training.needs import needs
    from holdall.weights.model import Model

    numbers = [n.strip() for n in workers.split(",")]
    if not all(n.isdigit() and int(n) > 0 for n in numbers):
        raise BadInput("--workers", workers, 'numbers ("2,4")')
    hub.present(model)
    described = Model({}, hub.outline(model)[0], name=model)
    count = described.skeleton().num_parameters()
    plain, *others = needs(described.skeleton, batch, length, [int(n) for n in numbers])
    asked = Budget.parse(memory)
    limit = asked.limit(plain.memory, count) if asked is not None else plain.memory
    rows = [(need, need.memory <= limit) for need in (plain, *others)]
    if json:
        told = [{**vars(need), "fits": fits} for need, fits in rows]
        as_json({"model": model, "memory": limit, "parameters": count, "ways": told})
        return
    print(f"{count:,} parameters, {batch} x {length} tokens, {human_bytes(limit)} a process:")
    table(
        ["method", "how", "memory", "disk", "same result", "fits"],
        [
            [n.method, n.how, human_bytes(n.memory), human_bytes(n.disk) if n.disk else "-",
             "yes" if n.exact else "nearly", "yes" if fits else "no"]
            for n, fits in rows
        ],
    )  # fmt: skip
