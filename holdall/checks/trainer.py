"""Checks for trainers: inputs untouched, same seed same bytes, budgets, live knobs, loading, floors, forged files.

Each trainer gives its own small run (`rehearsal`).
"""

from __future__ import annotations

import importlib
from typing import Any

from holdall.checks.every import brief, remembered, variants
from holdall.checks.faults import refuses_forged
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Trained
from holdall.packed import Packed

_SHARES = (5, 25, 50, 100)
_MADE: dict[type[Any], Trained] = {}


def _training() -> Any:
    return importlib.import_module("holdall.weights.training")


def _first(cls: type[Any]) -> Trained:
    """At the paper's own point; made once for all checks that only look at it."""
    if cls not in _MADE:
        module, data, _ = cls.rehearsal()
        _MADE[cls] = _fits(brief(cls), module, data)
    return _MADE[cls]


def _fits(method: Any, module: Any, data: Any, budget: Any = None) -> Trained:
    try:
        given: Trained = method.fit(module, data, budget)
    except BudgetError as fault:
        given = method.fit(module, data, int(fault.least))
    return given


def check_training_leaves_its_input_and_repeats(cls: type[Any]) -> None:
    module, data, _ = cls.rehearsal()
    before = _training().fingerprint(module)
    again = _fits(brief(cls), module, data)
    assert _training().fingerprint(module) == before, (
        f"{cls.full_name()} changed the module that it was given"
    )
    assert again.packed.to_bytes() == _first(cls).packed.to_bytes(), f"{cls.full_name()} is not deterministic"


def check_what_is_loaded_is_what_was_trained(cls: type[Any]) -> None:
    module, _, held = cls.rehearsal()
    trained = _first(cls)
    back = cls().load(Packed.from_bytes(trained.packed.to_bytes()), module)
    wanted, given = (_training().outputs(m, held) for m in (trained.model, back))
    assert wanted.isfinite().all(), f"{cls.full_name()} trained to {wanted}"
    far = float((wanted - given).abs().max() / wanted.abs().max().clamp(min=1e-9))
    assert far <= 1e-5, f"{cls.full_name()}: loaded outputs are {far:.2g} from the trained ones"


def check_budget_is_kept(cls: type[Any]) -> None:
    module, data, _ = cls.rehearsal()
    whole = _training().parameter_bytes(module)
    for share in _SHARES:
        allowed = share * whole // 100
        try:
            packed = brief(cls).fit(module, data[:1], f"{share}%").packed
        except BudgetError as fault:
            least = int(fault.least)
            assert least > allowed, f"{cls.full_name()} refuses {allowed} bytes but says {least} would do"
            packed = brief(cls).fit(module, data[:1], least).packed
            assert packed.nbytes <= least, f"{cls.full_name()} cannot keep its own least"
            continue
        assert packed.nbytes == len(packed.to_bytes()), f"{cls.full_name()}: nbytes is not the file's size"
        assert packed.nbytes <= allowed, f"{cls.full_name()} made {packed.nbytes} bytes for {share} %"


def check_knobs_are_live(cls: type[Any]) -> None:
    module, data, held = cls.rehearsal()
    once = remembered(lambda method, budget: _fits(method, module, data, budget))
    for f, base, changed in variants(cls):
        a, b = (once(m, f.metadata["at"].get("budget")) for m in (base, changed))
        outputs = [_training().outputs(t.model, held) for t in (a, b)]
        payloads = [{n: v.tobytes() for n, v in t.packed.arrays.items()} for t in (a, b)]
        equal = payloads[0] == payloads[1] and outputs[0].equal(outputs[1])
        expected = f.metadata["changes"] == "nothing"
        assert equal == expected, (
            f"{cls.full_name()}.{f.name} changes {'the result' if expected else 'nothing'}"
        )


def check_training_helps(cls: type[Any]) -> None:
    """Held-out loss falls well below that of the module as it was given, and of what an untrained fit stores."""
    module, data, held = cls.rehearsal()
    method = brief(cls)
    given, learned = (_training().held_out_loss(m, held) for m in (module, _first(cls).model))
    assert learned < 0.9 * given, f"{cls.full_name()}: loss {given:.3g} became {learned:.3g}"
    once = _training().held_out_loss(_fits(method, module, data[:1]).model, held)
    assert learned < once, f"{cls.full_name()}: one batch gives {once:.3g}, all of them {learned:.3g}"


def check_forged_files_are_refused(cls: type[Any]) -> None:
    """Valid checksums over nonsense: CorruptArtefact or something loaded, never another exception."""
    module, _, _ = cls.rehearsal()
    refuses_forged(cls, _first(cls).packed, lambda forged: cls().load(forged, module))


def check_bad_inputs_are_named(cls: type[Any]) -> None:
    """No data, a module with nothing to train, a parameter that is not finite: BadInput."""
    torch = importlib.import_module("torch")
    module, data, _ = cls.rehearsal()
    spoiled, _, _ = cls.rehearsal()
    with torch.no_grad():
        next(iter(spoiled.parameters())).view(-1)[0] = float("nan")
    for what, (m, d) in {
        "no data": (module, []), "nothing to train": (torch.nn.ReLU(), data), "a NaN": (spoiled, data),
    }.items():  # fmt: skip
        try:
            cls().fit(m, d)
        except BadInput:
            continue
        raise AssertionError(f"{cls.full_name()} takes {what}")
