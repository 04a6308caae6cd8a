"""Kernels are costly: one that cannot win is left, one that can is heard to the end, and one that fails is replaced."""

import lzma
import random
import typing
from pathlib import Path
from pydoc_data.topics import topics

import pyppmd
import pytest

from holdall.logs import blocks, bytestreams, plain, ppmd
from holdall.logs.bytestreams import LZMA, PPMD, STORED, ZSTD


def installer_log(lines: int, seed: int = 0) -> bytes:
    """What a package installer logs, generated: pages of links with a digest each, and the same pages again later."""
    rng, clock, out = random.Random(seed), 0, []
    pages: dict[str, list[str]] = {}
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(4, 14))) for _ in range(25)]
    while len(out) < lines:
        name = rng.choice(names)
        if name not in pages:
            pages[name] = []
            for k in range(rng.randrange(40, 300)):
                version, digest = f"{k // 30}.{k // 5 % 6}.{k % 5}", f"{rng.getrandbits(256):064x}"
                kind = rng.choice(["-py3-none-any.whl", ".tar.gz", "-cp311-cp311-manylinux_2_17_x86_64.whl"])
                pages[name].append(
                    f"    Found link https://files.example.org/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/"
                    f"{name}-{version}{kind} (from https://example.org/simple/{name}/) "
                    f"(requires-python:>=3.{rng.randrange(6, 11)}), version: {version}"
                )
        told = [
            f"  Fetching project page and analyzing links: https://example.org/simple/{name}/",
            *pages[name],
        ]
        for line in [
            *told,
            f'  https://example.org:443 "GET /simple/{name}/ HTTP/1.1" 200 {rng.randrange(4000, 90000)}',
        ]:
            clock += rng.random() < 0.3
            out.append(
                f"2026-11-23T05:{clock // 60000:02d}:{clock // 1000 % 60:02d},{clock % 1000:03d} {line}"
            )
    return "\n".join(out).encode() + b"\n"


@pytest.fixture(scope="module")
def log() -> bytes:
    return installer_log(16_000)


@pytest.fixture
def read(monkeypatch) -> dict[str, int]:
    """Bytes that xz -9e, a lower lzma and PPMd were given to pack."""
    given = {"lzma": 0, "quick": 0, "ppmd": 0}

    def counting(name, coder, method):
        def feed(raw, *more):
            given[name] += len(raw)
            return getattr(coder, method)(raw, *more)

        return type("Counting", (), {method: staticmethod(feed), "flush": staticmethod(coder.flush)})()

    xz, eight = lzma.LZMACompressor, pyppmd.Ppmd8Encoder

    def xz_or_quick(*told, filters=None):
        slow = (filters or told[3])[0]["preset"] == 9 | lzma.PRESET_EXTREME
        return counting(
            "lzma" if slow else "quick", xz(*told, **({"filters": filters} if filters else {})), "compress"
        )

    monkeypatch.setattr(lzma, "LZMACompressor", xz_or_quick)
    monkeypatch.setattr(pyppmd, "Ppmd8Encoder", lambda *a, **k: counting("ppmd", eight(*a, **k), "encode"))
    monkeypatch.setattr(plain, "_may_win", lambda *told: True)  # as a sample says of the whole of such a log
    return given


def test_a_kernel_that_loses_reads_less_than_half(log, read):
    """Templates take .92 of what lzma makes of this log; each kernel read all of it before it lost."""
    index, data, _ = blocks.encode_structured(log, blocks.Recipe())
    assert plain.contest(log, len(index) + len(data)) is None
    assert 0 < read["lzma"] < 0.5 * len(log)
    assert 0 < read["ppmd"] < 0.5 * len(log)
    assert read["quick"] <= len(log)


def test_a_kernel_that_wins_is_heard_to_the_end(log, read):
    raw = log[: 9 << 18]
    made = bytestreams.press(LZMA, raw)
    read["lzma"] = 0
    block = plain.contest(raw, len(made) + 100)
    assert block is not None and block.endswith(made) and read["lzma"] == len(raw)


@pytest.mark.parametrize("kernel", [LZMA, PPMD + 16])
@pytest.mark.parametrize("what", ["installer", "source"])
def test_what_a_beginning_foretells_of_xz_holds(log, kernel, what):
    """No beginning says that a kernel needs more than 1.01 of what it takes in the end."""
    here = Path(typing.__file__).parent
    raw = (
        log
        if what == "installer"
        else b"".join(p.read_bytes() for p in sorted(here.glob("*.py")))[:4_200_000]
    )
    made: list[tuple[int, int]] = []
    whole = plain.press_while(kernel, raw, plain._STEP, lambda *seen: not made.append(seen))
    assert whole is not None and len(made) == len(raw) // plain._STEP
    yards = plain.Yards(raw, plain.trail(raw, plain._far(len(raw), 9).compressobj(size=len(raw))))
    assert all(yards.goes_on(kernel, int(1.01 * len(whole)), *seen) for seen in made)
    assert not all(yards.goes_on(kernel, int(0.8 * len(whole)), *seen) for seen in made)


def test_a_beginning_unlike_the_rest_says_little():
    """Zeros first: what a kernel makes of them is no share for what follows."""
    yard = [plain._STEP // 4000 * (k + 1) for k in range(8)]
    yard += [yard[-1] + 60_000 * (k + 1) for k in range(9)]
    for share in (0.5, 1.0, 3.0):
        made = int(share * yard[4])
        assert not plain.is_hopeless(1 << 20, made, 16 * plain._STEP, yard, int(0.6 * yard[-1]))


@pytest.mark.parametrize("step", [1, 1000, 4999, 5000, 70_000])
@pytest.mark.parametrize("kernel", [LZMA, PPMD + 4, PPMD + 16])
def test_step_by_step_is_the_same_stream(kernel, step):
    raw = installer_log(40)[:5000]
    assert plain.press_while(kernel, raw, step, lambda *seen: True) == bytestreams.press(kernel, raw)


def test_the_slowest_zstd_is_asked_only_where_it_can_matter(monkeypatch):
    rng, asked, press = random.Random(0), [], bytestreams.press
    monkeypatch.setattr(bytestreams, "press", lambda k, raw: asked.append((k, len(raw))) or press(k, raw))
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10))) for _ in range(1000)]
    text = "\n".join(" ".join(rng.choices(names, k=12)) for _ in range(6000)).encode()
    assert len(text) > bytestreams._LARGE
    assert bytestreams.pack(text, spare=1)[0] > PPMD and ZSTD not in dict(asked)  # PPMd is far ahead
    kernel, data = bytestreams.pack(text, spare=len(text))
    assert kernel == ZSTD and bytestreams.unpack(kernel, data, len(text), "test") == text


def test_a_text_whose_best_kernel_does_not_read_back_is_packed_by_another(monkeypatch):
    """It was stored as it is: .41 MB more for the digests of an installer's records."""
    text, decode = "\n".join(topics.values()).encode()[:200_000], ppmd.decode
    best, data = bytestreams.pack(text)
    broken = lambda order, packed, size: b"" if order + PPMD == best else decode(order, packed, size)  # noqa: E731
    monkeypatch.setattr(ppmd, "decode", broken)
    kernel, other = bytestreams.pack(text)
    assert kernel not in (best, STORED) and len(data) < len(other) < 1.3 * len(data)
    assert bytestreams.unpack(kernel, other, len(text), "test") == text


def test_a_block_that_ppmd_does_not_read_back_goes_to_lzma(monkeypatch):
    text = "\n".join(topics.values()).encode()[:60_000]
    assert plain.contest(text, None)[1] == PPMD + 16
    monkeypatch.setattr(ppmd, "decode", lambda order, packed, size: b"")
    block = plain.contest(text, None)
    assert block[1] == LZMA and plain.decode_plain(block, "test") == text


@pytest.mark.parametrize("seed", [10, 14, 22, 35])
def test_ppmd_is_fed_so_that_it_loses_no_byte(seed):
    """Of these texts pyppmd 1.3.1 loses a byte if it gets them in one piece."""
    raw = random.Random(seed).randbytes(40_000 + seed)
    assert bytestreams.reads_back(PPMD + 4, bytestreams.press(PPMD + 4, raw), raw)
