"""Many inputs: one call each, in processes or on a Ray cluster, both through joblib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from holdall.errors import BadInput, HoldallError
from holdall.files import is_local, local_path
from holdall.parts.workers import known, prepared
from holdall.places import is_folder, size
from holdall.progress import track


def outputs(inputs: Sequence[str], output: str | None) -> list[str]:
    """Where each input goes: beside it, or to -o, which is a folder when there are several."""
    if output is None:
        named = [_beside(text) for text in inputs]
    elif len(inputs) == 1 and not output.endswith("/") and not is_folder(output):
        named = [output]
    else:
        if is_local(output):
            local_path(output).mkdir(parents=True, exist_ok=True)
        named = [f"{output.rstrip('/')}/{_last(text)}.hold" for text in inputs]
    twice = next((n for n in named if named.count(n) > 1), None)
    if twice is not None:
        raise BadInput("output", twice, "inputs of different names, or another folder for some of them")
    return named


def _beside(text: str) -> str:
    return text.rstrip("/") + ".hold"


def _last(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2]


def job(call: tuple[str, Any, str | None, str, str | None]) -> dict[str, Any]:
    """Pack one input, measured. Runs in another process too."""
    from holdall.meter import Meter
    from holdall.verbs import pack

    source, method, budget, to, calibrate = call
    with Meter() as meter:
        packed = pack(source, method, budget, to, calibrate)
    size_in, size_out = _input_bytes(source), packed.nbytes
    told, searched = packed.meta["method"], packed.notes.get("search")
    packed.close()
    return {
        "input": source,
        "output": to,
        "method": told["method"],
        "knobs": {k: v for k, v in told.items() if k != "method"},
        "budget": budget,
        "input_bytes": size_in,
        "bytes": size_out,
        "ratio": size_in / size_out,
        **meter.figures(),
        **({} if searched is None else {"search": searched.to_dict()}),
    }


def _input_bytes(source: str) -> int:
    from holdall.dropins import hub

    return size(hub.installed(source) if source in hub.short_names() else source)


def each(
    work: Callable[[Any], dict[str, Any]], calls: Sequence[Any], jobs: int, engine: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results in order, and the faults of those that failed; one failure stops nobody else."""
    known(engine)
    if len(calls) == 1 and engine == "processes":
        return [work(calls[0])], []
    joblib = prepared(engine)
    backend = "ray" if engine == "ray" else "loky"
    with joblib.parallel_config(backend, n_jobs=jobs):
        runner = joblib.Parallel(return_as="list" if engine == "ray" else "generator")
        results = list(track(runner(joblib.delayed(_caught)(work, c) for c in calls), "packing", len(calls)))
    rows = [r for r in results if isinstance(r, dict)]
    return rows, [r for r in results if isinstance(r, str)]


def _caught(work: Callable[[Any], dict[str, Any]], call: Any) -> dict[str, Any] | str:
    """A fault comes back as its line, with the input's name."""
    try:
        return work(call)
    except (HoldallError, OSError) as fault:
        return f"{call[0]}: {fault}"
