"""The house itself: imports stay light, errors are one line, methods and reports keep their promises."""

import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

import holdall
import holdall.registry
from holdall import errors
from holdall.meter import Meter, resident_bytes
from holdall.optional import lazy, need
from holdall.report import Report, provenance


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_room_no_torch_no_numba():
    loaded = json.loads(fresh("import holdall, sys, json; print(json.dumps(sorted(sys.modules)))"))
    heavy = {"torch", "numba", "numpy", "transformers", "fsspec", "rich", "typer"}
    assert not heavy & set(loaded)
    assert not {f"holdall.{room}" for room in holdall.registry.rooms()} & set(loaded)


def test_walking_the_rooms_loads_no_torch_no_numba():
    heavy = fresh(
        "import holdall, sys; holdall.methods(); print({'torch', 'numba', 'transformers'} & set(sys.modules))"
    )
    assert heavy.strip() == "set()"


def test_rooms_and_methods_are_found():
    assert {"logs", "weights", "kv"} <= set(holdall.registry.rooms())
    assert {"logs.logzip", "weights.bitstack", "kv.snapkv"} <= set(holdall.methods())
    assert holdall.get("kv.snapkv").full_name() == "kv.snapkv"


@pytest.mark.parametrize(
    ("typo", "near"), [("kv.snapvk", "kv.snapkv"), ("snapkv", "kv.snapkv"), ("logs.logzp", "logs.logzip")]
)
def test_a_misspelt_method_names_its_neighbour(typo, near):
    with pytest.raises(holdall.UnknownMethod) as caught:
        holdall.get(typo)
    assert near in caught.value.near and near in str(caught.value)


def test_errors_are_one_line_and_survive_processes():
    faults = [
        errors.BudgetError(1_200_000, 1_600_000, who="kv.snapkv", why="32-token window"),
        errors.BadInput("file", "x\n" * 500, "a log"),
        errors.UnknownMethod("x", ["y"]),
        errors.CorruptArtefact("a.hold", "cut short"),
        errors.NeedsExtra("zarr", "fields"),
    ]
    for fault in faults:
        assert isinstance(fault, errors.HoldallError) and str(fault) and "\n" not in str(fault)
    assert str(faults[0]) == (
        "asked 1.2 MB (1,200,000 bytes); "
        "the least that kv.snapkv can hold is 1.6 MB (1,600,000 bytes) (32-token window)"
    )
    assert isinstance(faults[1], ValueError) and isinstance(faults[2], KeyError)
    assert isinstance(faults[3], OSError) and isinstance(faults[4], ImportError)
    for fault in faults:  # joblib's workers send them home through pickle
        again = pickle.loads(pickle.dumps(fault))  # noqa: S301
        assert type(again) is type(fault) and str(again) == str(fault)


def test_a_missing_package_says_which_extra_brings_it():
    with pytest.raises(errors.NeedsExtra, match=r"holdall\[fields\]"):
        need("no_such_package_at_all", "fields")
    module = lazy("no_such_package_at_all", "fields")
    with pytest.raises(errors.NeedsExtra):
        _ = module.anything
    assert lazy("math", "x").sqrt(4) == 2


def test_meter_sees_memory_time_and_bytes(tmp_path):
    with Meter() as m:
        block = np.ones(8 << 20)  # 64 MiB
        time.sleep(0.05)
        (tmp_path / "x").write_bytes(block[: 1 << 17].tobytes())
        (tmp_path / "x").read_bytes()
        del block
    assert 60 << 20 < m.peak_bytes < 80 << 20
    assert m.seconds >= 0.05 and 0 < m.cpu_seconds < m.seconds + 1
    assert m.written_bytes >= 1 << 20 and m.read_bytes >= 1 << 20
    assert set(m.figures()) >= {"seconds", "cpu_seconds", "peak_bytes", "read_bytes", "written_bytes"}
    assert resident_bytes() > 10 << 20


def test_meter_without_the_kernels_help_samples(monkeypatch):
    monkeypatch.setattr("holdall.meter._reset_high_water", lambda: False)
    with Meter() as m:
        block = np.ones(8 << 20)
        time.sleep(0.1)
        del block
    assert 56 << 20 < m.peak_bytes < 90 << 20


@pytest.mark.slow
def test_meter_joules_say_how_they_are_known():
    with Meter(joules=True) as m:
        end = time.perf_counter() + 1.5
        while time.perf_counter() < end:
            pass
    assert m.joules is not None and m.joules > 0
    assert m.joules_how in ("measured", "modelled")


def test_report_compares_with_its_baseline():
    report = Report(
        {"original": {"bytes": 1000, "loss": 0.5}, "packed": {"bytes": 250, "loss": 1.0}}, "original"
    )
    assert report.ratio("bytes", "packed") == 0.25 and report["bytes"] == 250
    assert Report.from_dict(json.loads(report.to_json())).to_dict() == report.to_dict()
    table = report.as_table(title="t")
    assert "250 B (x0.25)" in table and "1 (x2)" in table
    with pytest.raises(holdall.BadInput):
        Report({}, "original")
    assert provenance(budget="25%")["versions"]["numpy"] == np.__version__
