"""Tenants on the command line: who may find what, from a table or a column, and changes of that."""

from __future__ import annotations

import io
from typing import Annotated, Any

import typer

Tenants = Annotated[
    str | None,
    typer.Option(
        "--tenants", help="Who may find what: a table with columns id and tenant, or a column's name."
    ),
]
Tenant = Annotated[
    str | None, typer.Option("--tenant", help="Whom --grant, --revoke or --add is about.", metavar="NAME")
]
Grant = Annotated[str | None, typer.Option("--grant", help="Ids that the tenant may find from now on.")]
Revoke = Annotated[str | None, typer.Option("--revoke", help="Ids that the tenant may find no longer.")]
Whose = Annotated[
    str | None, typer.Option("--tenant", help="Find only what this tenant was granted.", metavar="NAME")
]
Condition = Annotated[
    str | None, typer.Option("--tenants", help='A condition on tenants: "acme AND NOT trial".')
]
_TABLES = (".csv", ".parquet", ".arrow", ".feather")


def given(method: Any, told: str | None, source: str, text: bool) -> dict[str, Any]:
    """What `build` or `add` is told of tenants. source: of the vectors; text: whether ids are strings."""
    from holdall.errors import BadInput

    if told is None:
        return {}
    if not getattr(method, "tenanted", False):
        raise BadInput(
            "--tenants", told, f"none: {method.full_name()} knows no tenants (--with vectors.curator does)"
        )
    if not told.lower().endswith(_TABLES):
        return {"tenants": _table(source, [told]).column(told)}
    table = _table(told, ["id", "tenant"])
    return {"tenants": _grouped(told, table, text)}


def _grouped(url: str, table: Any, text: bool) -> dict[Any, Any]:
    """Ids by tenant."""
    import numpy as np

    from holdall.errors import BadInput

    ids, names = table.column("id").to_pylist(), table.column("tenant").to_pylist()
    for at, pair in enumerate(zip(ids, names, strict=True)):
        if None in pair:
            raise BadInput(
                "--tenants", f"row {at} of {url}, which is not filled", "an id and a tenant in each row"
            )
    found: dict[Any, list[Any]] = {}
    for i, name in zip(ids, names, strict=True):
        found.setdefault(name, []).append(str(i) if text else i)
    return {name: np.array(some) for name, some in found.items()}


def _table(url: str, columns: list[str]) -> Any:
    """Those columns of a file."""
    from holdall.errors import BadInput
    from holdall.files import open_stream
    from holdall.optional import need

    arrow = need("pyarrow", "vectors")
    if not url.lower().endswith(_TABLES):
        raise BadInput("--tenants", columns[0], f"a table, or a column of a table: {url} has no columns")
    with open_stream(url) as f:
        raw = io.BytesIO(f.read())
    try:
        if url.lower().endswith(".csv"):
            table = need("pyarrow.csv", "vectors").read_csv(raw)
        elif url.lower().endswith(".parquet"):
            table = need("pyarrow.parquet", "vectors").read_table(raw)
        else:
            table = need("pyarrow.feather", "vectors").read_table(raw)
        return table.select(columns)
    except (arrow.ArrowException, KeyError, OSError) as fault:
        why = " ".join(str(fault).split())[:120]
        raise BadInput(
            "--tenants", f"{url} ({why})", f"a table with columns {' and '.join(columns)}"
        ) from fault


def joining(there: Any, told: str | None, tenant: str | None, source: str) -> dict[str, Any]:
    """What `add` is told of tenants: one name for all that comes, or a column of what comes."""
    from holdall.errors import BadInput

    if told is not None and told.lower().endswith(_TABLES):
        raise BadInput("--tenants", told, "a column of what is added, or --tenant for all of it")
    if told is not None or tenant is None:
        return given(there.recipe, told, source, False)
    return {"tenants": named(there, tenant)}


def changed(there: Any, grant: str | None, revoke: str | None, tenant: str | None) -> dict[str, Any]:
    """Grants and revokes, and how many of each."""
    from holdall.cli.index import listed
    from holdall.errors import BadInput

    if grant is None and revoke is None:
        return {}
    if tenant is None:
        raise BadInput("--tenant", "none", "the tenant that --grant or --revoke is about")
    name = named(there, tenant)
    gone = there.revoke(listed(revoke, there.ids.text), name) if revoke is not None else 0
    new = there.grant(listed(grant, there.ids.text), name) if grant is not None else 0
    return {"granted": new, "revoked": gone}


def named(there: Any, tenant: str) -> Any:
    """A tenant of an index, which may call them by whole numbers."""
    from holdall.errors import BadInput

    if not hasattr(there, "grant"):
        raise BadInput("--tenant", tenant, f"none: {there.recipe.full_name()} knows no tenants")
    whole = tenant.removeprefix("-").isdecimal() and any(isinstance(n, int) for n in there.tenants)
    return int(tenant) if whole else tenant


def asked(there: Any, tenant: str | None, tenants: str | None) -> dict[str, Any]:
    """What `search` is told of tenants."""
    from holdall.errors import BadInput

    if tenant is not None:
        name = named(there, tenant)
        return {"tenant": name} if tenants is None else {"tenant": name, "tenants": tenants}
    if tenants is not None and not hasattr(there, "grant"):
        raise BadInput("--tenants", tenants, f"none: {there.recipe.full_name()} knows no tenants")
    return {} if tenants is None else {"tenants": tenants}
