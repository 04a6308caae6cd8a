"""Checks for selectors: order, budgets, rows, floors, and memory that is really freed.

Besides what every room's `quality.py` gives, a room with selectors gives `positions(y)` (the kept items of each
row, [rows, kept], padding as -1), `rows(x)` (each batch row alone), `poisoned(x)` (NaN where nothing valid stands)
and `shares_memory(x, y)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from holdall.checks.every import remembered, room_quality, variants
from holdall.errors import BudgetError
from holdall.registry import get

_SHARES = ("5%", "25%", "50%", "100%")


def _select(method: Any, x: Any, budget: Any) -> Any:
    """Selected within the budget, or with the least that the method says it needs."""
    try:
        return method.select(x, budget)
    except BudgetError as fault:
        return method.select(x, fault.least)


def check_selects_from_all_specimens(cls: type[Any]) -> None:
    quality = room_quality(cls)
    for name, x in quality.specimens().items():
        before = quality.fingerprint(x)
        y = _select(cls(), x, "50%")
        assert quality.fingerprint(x) == before, f"{cls.full_name()} changed its input ({name})"
        loss = quality.loss(x, y)
        assert np.isfinite(loss) and loss >= 0, f"{cls.full_name()} loses {loss} on {name}"


def check_keeps_all_when_all_fits(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    for budget in (None, "100%", quality.original_bytes(x)) if cls.name == "none" else ("100%",):
        assert quality.same(x, cls().select(x, budget)), f"{cls.full_name()} changes what fits into {budget}"


def check_keeps_the_order(cls: type[Any]) -> None:
    quality = room_quality(cls)
    y = _select(cls(), quality.real(), "25%")
    for row in quality.positions(y):
        assert (np.diff(row[row >= 0]) > 0).all(), (
            f"{cls.full_name()} mixes up the order or keeps an item twice"
        )


def check_budget_is_kept(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    original = quality.original_bytes(x)
    for share in _SHARES:
        allowed = int(share[:-1]) * original // 100
        for budget in (share, allowed):
            try:
                y = cls().select(x, budget)
            except BudgetError as fault:
                assert quality.original_bytes(cls().select(x, fault.least)) > allowed, (
                    f"{cls.full_name()} refuses {budget} but could hold it"
                )
                continue
            size = quality.original_bytes(y)
            assert size <= allowed, f"{cls.full_name()} holds {size} bytes for {budget} of {original}"


def check_frees_the_rest(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    y = _select(cls(), x, "25%")
    assert not quality.shares_memory(x, y), (
        f"{cls.full_name()} keeps the large one alive behind the small one"
    )


def check_same_seed_same_choice(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    a, b = _select(cls(), x, "25%"), _select(cls(), x, "25%")
    assert quality.fingerprint(a) == quality.fingerprint(b), f"{cls.full_name()} is not deterministic"


def check_batch_rows_are_independent(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    together = quality.positions(_select(cls(), x, "25%"))
    alone = [quality.positions(_select(cls(), row, "25%")) for row in quality.rows(x)]
    assert len(alone) > 1, "the room's real data has one row only"
    assert np.array_equal(together, np.concatenate(alone)), (
        f"{cls.full_name()}: a row depends on its neighbours"
    )


def check_what_is_not_valid_is_never_read(cls: type[Any]) -> None:
    quality = room_quality(cls)
    for name, x in quality.specimens().items():
        clean = quality.positions(_select(cls(), x, "50%"))
        dirty = quality.positions(_select(cls(), quality.poisoned(x), "50%"))
        assert np.array_equal(clean, dirty), f"{cls.full_name()} reads padding ({name})"


def check_knobs_are_live(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    once = remembered(lambda method, budget: quality.fingerprint(_select(method, x, budget)))
    for f, base, changed in variants(cls):
        budget = f.metadata["at"].get("budget", "25%")
        a, b = (once(m, budget) for m in (base, changed))
        dead = f.metadata["changes"] == "nothing"
        assert (a == b) == dead, (
            f"{cls.full_name()}.{f.name} = {f.metadata['other']!r} changes {f.metadata['changes']}"
        )


def check_beats_the_floors(cls: type[Any]) -> None:
    quality = room_quality(cls)
    if cls.full_name() in quality.FLOORS or cls.paper.number == 0:
        return
    x = quality.real()
    y = _select(cls(), x, "25%")
    loss, size = quality.loss(x, y), quality.original_bytes(y)
    for name in quality.FLOORS:
        worse = quality.loss(x, _select(get(name)(), x, size))
        assert loss < worse, f"{cls.full_name()} loses {loss:.4g} in {size} bytes, {name} {worse:.4g}"
