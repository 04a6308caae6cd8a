"""holdall serve: an OpenAI-compatible server that keeps to the memory you have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from holdall.cli.run import KV, Memory, ModelPath, With

Host = Annotated[str, typer.Option(help="Where to listen; anything but loopback lets others in.")]
Port = Annotated[int, typer.Option(help="0 takes one that is free.", min=0, max=65535)]
Key = Annotated[
    str | None, typer.Option(help="What clients must present.", envvar="HOLDALL_API_KEY", show_envvar=True)
]
Name = Annotated[str | None, typer.Option(help="The model's name for clients; none: its file's.")]
Context = Annotated[
    int | None, typer.Option(help="Tokens of a prompt with its answer; none: as many as fit.", min=2)
]
Slots = Annotated[int, typer.Option(help="Answers at a time; a kv method gives one at a time.", min=1)]
Queue = Annotated[int, typer.Option(help="Requests that may wait; more are refused (429).", min=0)]
Answer = Annotated[int, typer.Option(help="Tokens of an answer whose request names no limit.", min=1)]
Temperature = Annotated[float, typer.Option(help="Where a request names none.", min=0.0, max=2.0)]
Timeout = Annotated[float, typer.Option(help="Seconds that a request may take, waiting included.", min=0.1)]
Idle = Annotated[float, typer.Option(help="Seconds that a client may neither send nor read.", min=0.1)]
Grace = Annotated[
    float, typer.Option(help="Seconds in which answers may finish when it is stopped.", min=0.0)
]
Body = Annotated[str, typer.Option(help="The largest request.")]
ReportFile = Annotated[
    str | None,
    typer.Option("--report", help="A measurement to show: `holdall measure kv.snapkv --json` wrote it."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object when it is ready, for machines.")]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("serve", context_settings=loose)(serve)


def serve(
    called: typer.Context,
    model: ModelPath,
    memory: Memory = None,
    kv: KV = None,
    with_: With = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Key = None,
    name: Name = None,
    context: Context = None,
    slots: Slots = 8,
    queue: Queue = 64,
    answer: Answer = 1024,
    temperature: Temperature = 1.0,
    timeout: Timeout = 600.0,
    idle: Idle = 60.0,
    grace: Grace = 20.0,
    body: Body = "1MB",
    report: ReportFile = None,
    json: JSON = False,
) -> None:
    """Answer OpenAI clients and a page at /, within a memory budget.

    `holdall serve small.hold --memory 2GB --kv 25% --with kv.snapkv` listens on http://127.0.0.1:8000.
    Options of the kv method are its fields, as with pack. Ctrl-C lets answers finish.
    """
    from holdall.cli.knobs import separate
    from holdall.cli.run import kv_method
    from holdall.errors import BadInput

    words, options = separate(called.args)
    if words:
        raise BadInput("argument", words[0], "one model")
    method, most = kv_method(with_, kv, options), _bytes(body)
    settings = _settings(model, method)(
        name=name or Path(model.rstrip("/")).stem, api_key=api_key, host=host, queue=queue, answer=answer,
        temperature=temperature, timeout=timeout, idle=idle, grace=grace, body=most,
    )  # fmt: skip
    from holdall.server import run
    from holdall.server.service import Service

    with run.listen(host, port) as listener:
        runner, engine, base = run.open_runner(model, memory, method, kv, context, slots)
        quality = run.known(engine, model, kv, report)
        service = Service(runner, engine.tokenizer, settings, base)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        run.serve(service, quality, listener, lambda: _ready(address, settings.name, runner.context, json))


def _bytes(text: str) -> int:
    from holdall.budget import Budget
    from holdall.errors import BadInput

    most = Budget.parse(text)
    if most is None or most.bytes is None:
        raise BadInput("--body", text, 'bytes ("1MB")')
    return most.bytes


def _settings(model: str, method: Any) -> Any:
    """What settings are made with, once everything that serving that model needs is there."""
    from holdall.engine_plan import libraries
    from holdall.optional import need

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve")
    libraries(model, method)
    from holdall.server.service import Settings

    return Settings


def _ready(address: str, name: str, context: int, as_json: bool) -> None:
    import json

    if as_json:
        told = {"url": address, "api": f"{address}/v1", "model": name, "context": context}
        print(json.dumps(told, ensure_ascii=False), flush=True)
    else:
        print(
            f"{name}, up to {context} tokens: {address} (page), {address}/v1 (API); Ctrl-C stops", flush=True
        )
