"""Every method against every check of its kind, found by walking the rooms; and checks that dead methods fail."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

import holdall
from holdall.checks import checks_for, codec, skipped
from holdall.logs import Zstd
from holdall.method import knob

CASES = [(m, name) for m, cls in holdall.methods().items() for name in checks_for(cls)]


@pytest.mark.parametrize(
    ("method", "check"), CASES, ids=[f"{m}-{c.removeprefix('check_')}" for m, c in CASES]
)
def test_check(method, check):
    cls = holdall.get(method)
    reason = skipped(cls, check)
    if reason:
        pytest.skip(f"{method}: {reason}")
    checks_for(cls)[check](cls)


def test_skips_are_few_and_have_reasons():
    reasons = [r for cls in holdall.methods().values() for r in cls.skips.values()]
    assert len(reasons) <= len(holdall.methods()) and all(len(r) > 10 for r in reasons)


def test_bytes_do_not_depend_on_the_hash_seed():
    code = (
        "import holdall, hashlib, importlib\n"
        "for name, cls in holdall.methods('logs').items():\n"
        "    x = importlib.import_module('holdall.logs.quality').real()\n"
        "    print(name, hashlib.sha256(cls().encode(x).to_bytes()).hexdigest())\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] and told[0] == told[1]


@dataclass(frozen=True, kw_only=True)
class DeadKnob(Zstd):
    """A codec whose knob does nothing."""

    nothing: int = knob(1, "does nothing", other=2)


@dataclass(frozen=True, kw_only=True)
class Careless(Zstd):
    """A codec that ignores its budget."""

    def encode(self, x, budget=None, *, to=None):
        return super().encode(x, None, to=to)


def test_the_checks_catch_dead_mechanisms():
    with pytest.raises(AssertionError, match="changes nothing"):
        codec.check_knobs_are_live(DeadKnob)
    with pytest.raises(AssertionError, match="bytes for"):
        codec.check_budget_is_kept(Careless)
