"""`.hold`: a valid safetensors file, atomic, checksummed, lazy, and hostile-proof."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from holdall import BadInput, CorruptArtefact, Packed, files
from holdall.packed import Writer

META = {"room": "none", "method": {"method": "none.none"}, "deep": {"ünïcode": [1, 2.5, None]}}
GOLDEN = Path(__file__).parent / "golden"


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "bytes": rng.integers(0, 256, 13, dtype=np.uint8),
        "half": rng.normal(size=(3, 5)).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5),
        "flags": rng.random(9) > 0.5,
        "wide": rng.integers(-(2**60), 2**60, (2, 3)),
    }


def test_the_safetensors_library_reads_it(tmp_path):
    path = str(tmp_path / "a.hold")
    Packed(arrays(), META).save(path)
    told = load_file(path)
    for name, array in arrays().items():
        assert told[name].dtype == array.dtype and np.array_equal(told[name], array), name
    with safe_open(path, "np") as f:
        assert json.loads(f.metadata()["holdall"]) == META


def test_torch_reads_it_too_whatever_the_alignment(tmp_path):
    from safetensors.torch import load_file as torch_load

    path = str(tmp_path / "a.hold")
    Packed(arrays(), META).save(path)
    assert np.array_equal(torch_load(path)["wide"].numpy(), arrays()["wide"])


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_round_trip_on_paths_and_urls(tmp_path, scheme, lazy):
    url = f"{scheme}{tmp_path}/a.hold"
    packed = Packed(arrays(), META)
    packed.save(url)
    with Packed.open(url, lazy=lazy) as back:
        assert back.meta == META and list(back.arrays) == list(arrays())
        assert back.nbytes == packed.nbytes == len(packed.to_bytes())
        for name, array in arrays().items():
            assert back.arrays[name].dtype == array.dtype and np.array_equal(back.arrays[name], array)


def test_lazy_reads_only_what_is_asked_for(tmp_path):
    path = str(tmp_path / "a.hold")
    big = {f"s{i}": np.full(100_000, i, np.uint8) for i in range(10)}
    Packed(big, META).save(path)
    with Packed.open(path) as packed:
        header = packed.traffic
        assert header < 3_000
        assert packed.arrays["s3"][0] == 3
        assert packed.traffic == header + 100_000
        got = packed.arrays.read(["s5", "s7", "s6"])
        assert [int(a[0]) for a in got.values()] == [5, 7, 6]
        assert packed.traffic == header + 400_000
        assert packed.check() == 1_000_000


def test_a_writer_streams_more_than_it_holds(tmp_path):
    path, chunk = str(tmp_path / "a.hold"), os.urandom(1 << 20)
    tracemalloc.start()
    with Writer(path) as writer:
        writer.add("head", np.arange(5))
        writer.add("stream", (chunk for _ in range(200)))
        writer.add("tail", np.arange(3.0))
        writer.finish(META)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20, peak
    with Packed.open(path) as packed:
        assert packed.check() > 200 << 20 and packed.arrays.section("stream").shape == (200 << 20,)
        assert np.array_equal(packed.arrays["tail"], np.arange(3.0))
    assert set(load_file(path)) >= {"head", "stream", "tail"}


def test_a_stream_of_more_sections_than_the_reserved_header_can_name(tmp_path):
    path = str(tmp_path / "a.hold")
    with Writer(path) as writer:
        writer.add("big", bytes(9 << 20))
        for i in range(2000):
            writer.add(f"section number {i}", np.array([i]))
        writer.finish(META)
    with Packed.open(path) as packed:
        packed.check()
        assert packed.arrays["section number 1999"][0] == 1999
    assert os.listdir(tmp_path) == ["a.hold"]


@pytest.mark.parametrize("bad", ["", "~x", "__metadata__", "twice"])
def test_bad_section_names_are_refused(bad):
    with Writer(None) as writer:
        writer.add("twice", b"1")
        with pytest.raises(BadInput):
            writer.add(bad, b"2")


def test_unknown_dtypes_are_refused():
    with pytest.raises(BadInput, match="complex"):
        Packed({"x": np.zeros(2, complex)}, META).to_bytes()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_cut_and_any_flipped_bit_is_seen(data):
    raw = Packed(arrays(), META).to_bytes()
    bad = bytearray(raw)
    if data.draw(st.booleans()):
        del bad[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        bad[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptArtefact):
        Packed.from_bytes(bytes(bad))


def test_every_single_bit_of_the_file_is_under_a_checksum():
    raw = Packed({"a": np.arange(4, dtype=np.uint8), "b": np.ones(1)}, {"room": "x"}).to_bytes()
    for i in range(len(raw) * 8):
        bad = bytearray(raw)
        bad[i // 8] ^= 1 << i % 8
        with pytest.raises(CorruptArtefact):
            Packed.from_bytes(bytes(bad))


def forge(head, data=b"", sums=None):
    """A file with a right header checksum around whatever `head` says."""
    count = len(head) if sums is None else sums
    told = {"holdall": '{"room": "x"}', "holdall.format": "1", "holdall.xxh3": "0" * 32}
    import base64

    told["holdall.sums"] = base64.b64encode(bytes(16) * count).decode()
    text = json.dumps({"__metadata__": told, **head}, separators=(",", ":")).encode()
    raw = len(text).to_bytes(8, "little") + text
    digest = xxhash.xxh3_128_hexdigest(raw)
    return raw.replace(b'"holdall.xxh3":"' + b"0" * 32, b'"holdall.xxh3":"' + digest.encode()) + data


U8 = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
HOSTILE = {
    "overlap": ({"a": U8, "b": U8}, b"1234"),
    "hole": ({"a": {**U8, "data_offsets": [2, 6]}}, b"123456"),
    "beyond the end": ({"a": {**U8, "shape": [10**15], "data_offsets": [0, 10**15]}}, b"1234"),
    "negative": ({"a": {**U8, "shape": [-4], "data_offsets": [0, -4]}}, b""),
    "shape times dtype overflows": ({"a": {**U8, "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"),
    "not a dtype": ({"a": {**U8, "dtype": "O"}}, b"1234"),
    "object dtype": ({"a": {**U8, "dtype": "object"}}, b"1234"),
    "float offsets": ({"a": {**U8, "data_offsets": [0, 4.0]}}, b"1234"),
    "boolean shape": ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"1"),
    "trailing data": ({"a": U8}, b"12345"),
    "entry is a list": ({"a": []}, b""),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 4]}}, b"1234"),
    "hundred dimensions": ({"a": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}, b"1"),
    "wrong sum": ({"a": U8}, b"1234"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_with_a_right_checksum(name):
    head, data = HOSTILE[name]
    tracemalloc.start()
    with pytest.raises(CorruptArtefact):
        Packed.from_bytes(forge(head, data))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x" * 9,
        (2**63).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"{}        ",
        (4).to_bytes(8, "little") + b"null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (30).to_bytes(8, "little") + b'{"__metadata__":{"holdall":1}}',
        b"GGUF" + bytes(100),
    ],
)
def test_other_files_are_refused(raw):
    with pytest.raises(CorruptArtefact):
        Packed.from_bytes(raw)


def test_duplicate_names_are_refused():
    raw = Packed(
        {"aa": np.arange(2, dtype=np.uint8), "ab": np.arange(2, dtype=np.uint8)}, {"room": "x"}
    ).to_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = raw[8 : 8 + length].replace(b'"ab"', b'"aa"')
    digest = json.loads(head)["__metadata__"]["holdall.xxh3"].encode()
    blank = raw[:8] + head.replace(digest, b"0" * 32)
    forged = blank.replace(b"0" * 32, xxhash.xxh3_128_hexdigest(blank).encode()) + raw[8 + length :]
    with pytest.raises(CorruptArtefact, match="twice"):
        Packed.from_bytes(forged)


def test_a_newer_format_says_upgrade():
    raw = forge({}).replace(b'"holdall.format":"1"', b'"holdall.format":"9"')
    length = int.from_bytes(raw[:8], "little")
    digest = json.loads(raw[8 : 8 + length])["__metadata__"]["holdall.xxh3"].encode()
    blank = raw.replace(digest, b"0" * 32)
    with pytest.raises(CorruptArtefact, match="upgrade"):
        Packed.from_bytes(blank.replace(b"0" * 32, xxhash.xxh3_128_hexdigest(blank).encode()))


def test_the_golden_file_decodes_for_ever():
    with Packed.open(str(GOLDEN / "packed-v1.hold")) as packed:
        packed.check()
        assert packed.meta == META
        for name, array in arrays(seed=7).items():
            assert packed.arrays[name].dtype == array.dtype and np.array_equal(packed.arrays[name], array)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A real failing write: the kernel refuses to grow files of this process over 1 MB."""
    path = tmp_path / "a.hold"
    path.write_bytes(b"old")
    code = f"""
        import resource, signal, numpy as np
        from holdall import Packed
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            Packed({{"x": np.zeros(20 << 20, np.uint8)}}, {{"room": "x"}}).save({str(path)!r})
        except OSError as fault:
            print(fault.errno)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "27"  # EFBIG
    assert os.listdir(tmp_path) == ["a.hold"] and path.read_bytes() == b"old"


def test_kill_9_at_random_moments_leaves_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "a.hold"
    Packed({"x": np.zeros(1)}, {"room": "x", "round": -1}).save(str(path))
    code = f"""
        import numpy as np
        from holdall.packed import Writer
        for i in range(10**9):
            with Writer({str(path)!r}) as w:
                w.add("x", (bytes([i % 256]) * (1 << 20) for _ in range(12)))
                w.finish({{"room": "x", "round": i}})
            print(i, flush=True)
    """
    rng = random.Random(0)
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        last = [int(n) for n in child.stdout.read().split()]
        child.wait()
        with Packed.open(str(path)) as packed:
            packed.check()
            done = last[-1] if last else 0
            assert packed.meta["round"] in (done, done + 1)
            assert packed.arrays["x"][0] == packed.meta["round"] % 256
    Packed({"x": np.zeros(1)}, META).save(str(path))
    assert os.listdir(tmp_path) == ["a.hold"], "the next save sweeps what killed writers left"


def test_a_failing_read_is_not_swallowed(tmp_path):
    path = str(tmp_path / "a.hold")
    Packed(arrays(), META).save(path)
    with Packed.open(path) as packed:
        os.truncate(path, Path(path).stat().st_size - 20)
        with pytest.raises(CorruptArtefact, match="cut short"):
            packed.arrays["wide"]


@pytest.mark.parametrize("url", ["/no/such/folder/a.hold", "{tmp}", "nosuchscheme://a/b"])
def test_bad_outputs_fail_before_the_work(tmp_path, url):
    with pytest.raises(BadInput):
        files.atomic_write(url.format(tmp=tmp_path))


def test_missing_inputs_are_named(tmp_path):
    for url in (str(tmp_path / "none"), str(tmp_path), "memory://nothing/here"):
        with pytest.raises(BadInput, match=r"exists|folder"):
            Packed.open(url)
