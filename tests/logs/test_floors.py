"""The floors are exact, and each is what it says."""

import lzma

import pytest

import holdall
from holdall.errors import BadInput, BudgetError
from holdall.logs import Logzip, Nothing, Xz, Zstd, quality
from tests.logs.test_logzip import server_log


@pytest.mark.parametrize("method", [Nothing(), Zstd(), Xz(), Zstd(level=1), Xz(preset=0)])
def test_exact_on_everything(method, tmp_path):
    for name, x in quality.specimens().items():
        assert method.decode(method.encode(x)) == x, name
    (tmp_path / "a.log").write_bytes(server_log(500))
    with method.encode(
        type(method).read_input(str(tmp_path / "a.log")), to=str(tmp_path / "a.hold")
    ) as packed:
        assert method.decode(packed) == server_log(500)


def test_xz_is_xz():
    raw = server_log(3000)
    alone = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    assert alone < Xz().encode(raw).nbytes < alone + 600


def test_a_budget_under_the_floor_raises():
    with pytest.raises(BudgetError):
        Nothing().encode(b"x" * 5000, "50%")


@pytest.mark.parametrize(("name", "head", "wanted"), [
    ("a.log", b"one line\n", True), ("messages", b"a 1\nb 2\nc 3\n", True), ("a.jsonl", b'{"a":1}\n', True),
    ("a.gguf", b"GGUF\3\0\0\0", False), ("a.log", b"\x10\0\0\0\0\0\0\0{\"__metadata__\"", False),
    ("a.png", b"\x89PNG\r\n\x1a\n\0\0", False), ("a.log", b"", False),
])  # fmt: skip
def test_sniffing(name, head, wanted):
    assert Logzip.sniff(name, head) is wanted


def test_pack_and_unpack_by_sniffing(tmp_path):
    raw = server_log(700)
    (tmp_path / "a.log").write_bytes(raw)
    holdall.pack(str(tmp_path / "a.log"), to=str(tmp_path / "a.hold")).close()
    holdall.unpack(str(tmp_path / "a.hold"), to=str(tmp_path / "b.log"))
    assert (tmp_path / "b.log").read_bytes() == raw
    with pytest.raises(BadInput):
        Logzip().encode(17)
