"""A model's name changes with any byte that is looked at, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdall.dropins import identity as module
from holdall.dropins.identity import identity
from holdall.files import open_reader


def test_samples_reach_from_the_first_byte_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START", 100)
    monkeypatch.setattr(module, "_SAMPLES", 5)
    monkeypatch.setattr(module, "_SAMPLE", 10)
    where = tmp_path / "model.gguf"
    raw = bytes(range(256)) * 4
    where.write_bytes(raw)
    first = identity(str(where))
    assert identity(str(where)) == first and len(first) == 32
    with open_reader(str(where)) as reader:
        assert sum(map(len, module._sampled(reader))) == 150 == reader.traffic
    for at in (0, 99, 100, 1014, 1023):  # the beginning, the first sample and the last
        where.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert identity(str(where)) != first
    where.write_bytes(raw + b"\0")
    assert identity(str(where)) != first
    where.write_bytes(raw[:120] + b"\xff" + raw[121:])  # between two samples: not looked at
    assert identity(str(where)) == first


def test_a_packed_model_is_named_by_its_header(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    from holdall.packed import Packed

    names = set()
    for value in (1, 2):
        path = str(tmp_path / f"{value}.hold")
        Packed({"w": np.full(1000, value)}, {"room": "weights"}).save(path)
        names.add(identity(path))
    assert len(names) == 2  # the header holds the checksum of every section
