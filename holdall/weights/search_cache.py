"""What searches found, kept under the user's cache folder: $XDG_CACHE_HOME/holdall/auto, else ~/.cache/holdall/auto.

An entry is believed only if it is whole, was made for these very weights, texts, budget, knobs and methods, and names
nothing but methods that are candidates now. Anything else is searched again and overwritten.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from holdall import __version__
from holdall.files import atomic_write
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model
from holdall.weights.trial import Trial

_FORMAT = 1


def folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "holdall" / "auto"


def key_of(x: Model, limit: int | None, knobs: Mapping[str, Any], tried: Sequence[WeightCodec]) -> str:
    """One name for everything that the answer depends on."""
    from holdall.weights.quality import fingerprint

    told = {
        "format": _FORMAT, "holdall": __version__, "model": fingerprint(x).hex(), "calibration": x.calibration,
        "limit": limit, "knobs": dict(knobs), "tried": [[m.to_dict(), dict(m.brief)] for m in tried],
    }  # fmt: skip
    return xxhash.xxh3_128(_bytes(told)).hexdigest()


def write(key: str, trials: Sequence[Trial], sample: str) -> None:
    body = {
        "key": key,
        "sample": sample,
        "trials": [{**vars(t), "method": t.method.to_dict()} for t in trials],
    }
    where = folder()
    where.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(where / f"{key}.json")) as f:
        f.write(_bytes({**body, "sum": _sum(body)}))
        f.publish()


def read(key: str, tried: Sequence[WeightCodec]) -> tuple[list[Trial], str] | None:
    """(the trials of that search, what they were made on); None where there is none that can be believed."""
    path = folder() / f"{key}.json"
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_bytes())
        body = {"key": told["key"], "sample": str(told["sample"]), "trials": told["trials"]}
        if told["sum"] != _sum(body) or told["key"] != key:
            return None
        known = {_bytes(m.to_dict()): m for m in tried}
        found = [_trial(t, known) for t in body["trials"]]
    except (ValueError, KeyError, TypeError, RecursionError):  # not JSON, or not what `write` writes
        return None
    return (found, body["sample"]) if len(found) == len(tried) else None


def _trial(told: Mapping[str, Any], known: Mapping[bytes, WeightCodec]) -> Trial:
    method = known[_bytes(told["method"])]
    numbers = [told["nbytes"], told["seconds"], *told["figures"].values()]
    lost = told["lost"]
    if not all(math.isfinite(n) for n in numbers) or (lost is not None and not math.isfinite(lost)):
        raise ValueError("numbers that are not finite")
    return Trial(method, int(told["nbytes"]), lost, float(told["seconds"]), dict(told["figures"]))


def _bytes(told: Any) -> bytes:
    return json.dumps(told, sort_keys=True).encode()


def _sum(body: Any) -> str:
    return xxhash.xxh3_128(_bytes(body)).hexdigest()
