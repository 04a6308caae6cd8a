"""The same work on many items at once: in processes of this machine, or on a Ray cluster; results come in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from holdall.errors import BadInput
from holdall.optional import need

ENGINES = ("processes", "ray")
_AHEAD = 4  # items for each worker that are held at a time


def in_order(
    work: Callable[[Any], Any], items: Iterable[Any], jobs: int, engine: str
) -> Iterator[tuple[Any, Any]]:
    """(item, what became of it), a few items for each worker at a time; here and now where there is one worker.

    work and items travel to workers, so `work` is a function of a module, or an object of one.
    """
    known(engine)
    if jobs == 1 and engine == "processes":
        for item in items:
            yield item, work(item)
        return
    waiting = iter(items)
    first = list(islice(waiting, 2))
    if len(first) < 2:  # nothing to share out
        yield from ((item, work(item)) for item in first)
        return
    joblib, waiting = prepared(engine), chain(first, waiting)
    with joblib.parallel_config("ray" if engine == "ray" else "loky", n_jobs=jobs), joblib.Parallel() as run:
        while some := list(islice(waiting, _AHEAD * max(jobs, 1))):
            yield from zip(some, run(joblib.delayed(work)(item) for item in some), strict=True)


def known(engine: str) -> None:
    if engine not in ENGINES:
        raise BadInput("--engine", engine, " or ".join(ENGINES))


def prepared(engine: str) -> Any:
    """joblib, with Ray as one of its backends where that is asked for."""
    joblib = need("joblib", "logs")
    if engine == "ray":
        need("ray", "ray")
        need("ray.util.joblib", "ray").register_ray()
    return joblib
