"""holdall search: what is nearest to a query, from an index folder."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table
from holdall.cli.tenants import Condition, Whose

IndexPath = Annotated[
    str, typer.Argument(metavar="INDEX", help="A folder that `holdall index` wrote, or its URL.")
]
Queries = Annotated[str, typer.Argument(metavar="QUERIES", help="A file of vectors (path or URL).")]
K = Annotated[int, typer.Option("-k", help="How many to find for each query.")]
Where = Annotated[str | None, typer.Option("--where", help="A condition on attributes: \"lang = 'en'\".")]
Recall = Annotated[
    float | None,
    typer.Option("--recall", help="The share of the nearest to find: .95. As it was measured for the index."),
]
Memory = Annotated[
    str | None, typer.Option("--memory", "-m", help="What searching may hold, if not what it was built for.")
]
Out = Annotated[
    str | None, typer.Option("--output", "-o", help="A .npz for ids and distances, or a .npy for ids [Q, k].")
]
_BATCH = 1024  # queries at a time


def register(app: typer.Typer) -> None:
    app.command("search")(search)


def search(
    index: IndexPath,
    queries: Queries,
    k: K = 10,
    where: Where = None,
    recall: Recall = None,
    tenant: Whose = None,
    tenants: Condition = None,
    memory: Memory = None,
    output: Out = None,
    json: JSON = False,
) -> None:
    """Find the nearest vectors of each query: ids and distances, the nearest first.

    `holdall search v.index queries.npy -k 10 --recall 0.95 --where "lang = 'en'"`. Distances are Euclidean, 1 - cosine,
    or minus the inner product, as the index was built; fewer than k are found where a condition leaves fewer.
    `--tenant acme` finds only what acme was granted.
    """
    from holdall.cli.tenants import asked as who
    from holdall.errors import BadInput
    from holdall.vectors.building import opened

    if output is not None and not output.lower().endswith((".npz", ".npy")):
        raise BadInput("output", output, "a .npz or .npy file")
    more: dict[str, Any] = {} if recall is None else {"recall": recall}
    with opened(index, memory) as there, there.recipe.source(queries) as asked:
        more |= who(there, tenant, tenants)
        found = [
            there.search(asked.cut(a, min(a + _BATCH, asked.count)), k, where, **more)
            for a in range(0, asked.count, _BATCH)
        ]
    if output is not None:
        _write(output, found)
    if json:
        as_json([{"query": i, "hits": _hits(ids, away)} for i, (ids, away) in enumerate(_rows(found))])
    elif output is None:
        lines = [
            [str(i), str(hit["id"]), f"{hit['distance']:.6g}"]
            for i, (ids, away) in enumerate(_rows(found))
            for hit in _hits(ids, away)
        ]
        table(["query", "id", "distance"], lines)


def _rows(found: list[Any]) -> Any:
    return ((ids, away) for hits in found for ids, away in zip(hits.ids, hits.distances, strict=True))


def _hits(ids: Any, away: Any) -> list[dict[str, Any]]:
    import math

    return [
        {"id": i, "distance": d}
        for i, d in zip(ids.tolist(), away.tolist(), strict=True)
        if not math.isinf(d)
    ]


def _write(output: str, found: list[Any]) -> None:
    import io

    import numpy as np

    from holdall.files import atomic_write

    ids, away = (np.concatenate([getattr(h, n) for h in found]) for n in ("ids", "distances"))
    raw = io.BytesIO()
    if output.lower().endswith(".npy"):
        np.save(raw, ids, allow_pickle=False)
    else:
        np.savez(raw, ids=ids, distances=away)
    with atomic_write(output) as f:
        f.write(raw.getvalue())
        f.publish()
