"""Checks for codecs: round trips, budgets, live knobs, floors, faults, hostile files."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from holdall.checks.every import brief, remembered, room_quality, variants
from holdall.errors import BudgetError
from holdall.packed import Packed
from holdall.registry import get

_SHARES = ("5%", "25%", "50%", "100%")


def fits(method: Any, x: Any, budget: Any = None) -> Packed:
    """Encoded within the budget (None: the paper's own point), or in the least that the method says it needs."""
    try:
        return method.encode(x, budget)
    except BudgetError as fault:
        return method.encode(x, int(fault.least))


def check_round_trips(cls: type[Any]) -> None:
    quality = room_quality(cls)
    for name, x in quality.specimens().items():
        before = quality.fingerprint(x)
        packed = fits(cls(), x)
        back = cls().decode(Packed.from_bytes(packed.to_bytes()))
        assert quality.fingerprint(x) == before, f"{cls.full_name()} changed its input ({name})"
        if cls.lossless:
            assert quality.same(x, back), f"{cls.full_name()} is not exact on {name}"
        else:
            loss = quality.loss(x, back)
            assert np.isfinite(loss) and loss >= 0, f"{cls.full_name()} loses {loss} on {name}"


def check_same_input_same_bytes(cls: type[Any]) -> None:
    x = room_quality(cls).real()
    assert fits(brief(cls), x).to_bytes() == fits(brief(cls), x).to_bytes(), (
        f"{cls.full_name()} is not deterministic"
    )


def check_scratch_memory_is_never_read(cls: type[Any]) -> None:
    x = room_quality(cls).real()
    clean = fits(brief(cls), x)
    with poisoned_scratch():
        dirty = fits(brief(cls), x)
        back = cls().decode(clean)
    assert clean.to_bytes() == dirty.to_bytes(), f"{cls.full_name()} encodes memory that it never wrote"
    assert room_quality(cls).same(cls().decode(clean), back), (
        f"{cls.full_name()} decodes memory it never wrote"
    )


def check_budget_is_kept(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()
    original = quality.original_bytes(x)
    for share in _SHARES:
        allowed = int(share[:-1]) * original // 100
        try:
            packed = brief(cls).encode(x, share)
        except BudgetError as fault:
            least = int(fault.least)
            assert least > allowed, (
                f"{cls.full_name()} refuses {allowed} bytes but says that {least} would do"
            )
            assert brief(cls).encode(x, least).nbytes <= least, f"{cls.full_name()} cannot keep its own least"
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.hold"
            packed.save(str(path))
            size = path.stat().st_size
        assert size == packed.nbytes, f"{cls.full_name()}: nbytes says {packed.nbytes}, the disk {size}"
        assert size <= allowed, f"{cls.full_name()} wrote {size} bytes for {share} of {original}"


def check_knobs_are_live(cls: type[Any]) -> None:
    quality = room_quality(cls)
    x = quality.real()

    def made(method: Any, budget: Any) -> tuple[Any, bytes]:
        packed = method.encode(x, budget)
        return _payload(packed), _gives(quality, method, packed)

    once = remembered(made)
    for f, base, changed in variants(cls):
        budget = f.metadata["at"].get("budget")
        equal = once(base, budget) == once(changed, budget)
        if f.metadata["changes"] == "nothing":
            assert equal, f"{cls.full_name()}.{f.name} changes the output"
        else:
            assert not equal, (
                f"{cls.full_name()}.{f.name} changes nothing: {base} and {changed} give the same bytes"
            )


def check_beats_the_floors(cls: type[Any]) -> None:
    quality = room_quality(cls)
    if cls.full_name() in quality.FLOORS or cls.paper.number == 0:
        return
    x = quality.real()
    packed = fits(brief(cls), x, None if cls.lossless else "25%")
    loss = quality.loss(x, cls().decode(packed))
    for name in quality.FLOORS:
        floor = get(name)()
        if type(floor).lossless and not cls.lossless:
            continue
        if cls.lossless:
            size = floor.encode(x).nbytes
            assert packed.nbytes < size, f"{cls.full_name()}: {packed.nbytes} bytes, {name} {size}"
        else:
            # a floor that needs more bytes is given them, which only makes it harder to beat
            worse = quality.loss(x, floor.decode(fits(floor, x, packed.nbytes)))
            assert loss < worse, (
                f"{cls.full_name()} loses {loss:.4g} in {packed.nbytes} bytes, {name} {worse:.4g}"
            )


def _gives(quality: Any, method: Any, packed: Packed) -> bytes:
    """A knob may also be of what decoding does."""
    return bytes(quality.fingerprint(method.decode(packed)))


def _payload(packed: Packed) -> list[tuple[str, bytes]]:
    """The bytes without the recipe that made them, which differs whenever a knob does."""
    rest = {k: v for k, v in packed.meta.items() if k not in ("method", "report")}
    return [
        ("meta", json.dumps(rest, sort_keys=True).encode()),
        *((n, a.tobytes()) for n, a in packed.arrays.items()),
    ]


@contextlib.contextmanager
def poisoned_scratch() -> Iterator[None]:
    """np.empty and torch.empty hand out garbage: NaN where the type has it, 0xA5 elsewhere."""

    def poison(real: Any) -> Any:
        def empty(*args: Any, **named: Any) -> Any:
            out = real(*args, **named)
            if isinstance(out, np.ndarray):
                if out.dtype.kind in "fc":
                    out.fill(np.nan)
                elif out.dtype.kind in "iub":
                    out.view(np.uint8 if out.dtype.kind == "b" else out.dtype).fill(
                        1 if out.dtype.kind == "b" else 0x25
                    )
            elif out.device.type != "meta":
                out.fill_(float("nan") if out.is_floating_point() else 1)
            return out

        return empty

    with contextlib.ExitStack() as stack:
        targets = [(np, "empty"), (np, "empty_like")]
        import sys

        if "torch" in sys.modules:
            torch = importlib.import_module("torch")
            targets += [(torch, "empty"), (torch, "empty_like")]
        for module, name in targets:
            stack.enter_context(mock.patch.object(module, name, poison(getattr(module, name))))
        yield
