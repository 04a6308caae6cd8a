"""pack, unpack, info, verify and grep on logs: exact, measured, atomic, and one line when it cannot be done."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.processes import COMMAND, ENV, process

from holdall.packed import Packed


def test_there_and_back(call, log: Path) -> None:
    row = json.loads(call("pack", log, "--json").out)
    packed = Path(f"{log}.hold")
    assert row["bytes"] == packed.stat().st_size < row["input_bytes"] == log.stat().st_size
    assert row["ratio"] == pytest.approx(row["input_bytes"] / row["bytes"])
    assert row["seconds"] > 0 and row["peak_bytes"] > 0 and row["method"].startswith("logs.")
    assert call("verify", packed, "--deep").code == 0
    back = log.with_name("back.log")
    assert call("unpack", packed, "-o", back).code == 0
    assert back.read_bytes() == log.read_bytes()


def test_options_of_a_method_are_its_fields(call, log: Path) -> None:
    sizes = {}
    for level in (1, 19):
        row = json.loads(
            call(
                "pack",
                log,
                "--with",
                "logs.zstd",
                "--level",
                level,
                "-o",
                log.with_suffix(f".{level}"),
                "--json",
            ).out
        )
        sizes[level] = row["bytes"]
        assert row["knobs"] == {"level": level}
    assert sizes[19] < sizes[1]
    told = call(
        "pack", log, "--with", "logs.zstd", "--set", "level=19", "-o", log.with_suffix(".set"), "--json"
    )
    assert json.loads(told.out)["bytes"] == sizes[19]
    for words, says in (
        (["--levle", "3"], "--level"),
        (["--level", "high"], "whole number"),
        (["--level"], "no value"),
        (["--set", "level"], "knob=value"),
    ):
        told = call("pack", log, "--with", "logs.zstd", *words)
        assert told.code == 2 and says in told.one_line()


def test_info_reads_the_header_only_and_tells_the_truth(call, log: Path) -> None:
    call("pack", log, "--with", "logs.zstd")
    told = json.loads(call("info", f"{log}.hold", "--json").out)
    assert (told["room"], told["method"], told["knobs"]) == ("logs", "logs.zstd", {"level": 19})
    assert told["bytes"] == Path(f"{log}.hold").stat().st_size
    with Packed.open(f"{log}.hold") as packed:
        assert sum(s["bytes"] for s in told["sections"]) == sum(a.nbytes for a in packed.arrays.values())
    assert "logs.zstd" in call("info", f"{log}.hold").out


@pytest.mark.parametrize("verb", ["verify", "unpack", "grep"])
def test_a_damaged_file_is_told_in_one_line(call, log: Path, verb: str) -> None:
    call("pack", log)
    packed = Path(f"{log}.hold")
    raw = bytearray(packed.read_bytes())
    raw[-3] ^= 16
    packed.write_bytes(raw)
    words = {"verify": [packed], "unpack": [packed, "-o", log.with_name("x")], "grep": ["worker", packed]}[
        verb
    ]
    told = call(verb, *words)
    assert told.code == 2 and "damaged" in told.one_line()
    assert not log.with_name("x").exists()


def test_grep_prints_what_grep_prints(call, log: Path) -> None:
    call("pack", log)
    packed = f"{log}.hold"
    for words in (
        ["worker-3"],
        ["-n", "-i", "error"],
        ["-c", "worker-3"],
        ["-F", "[sd1]"],
        ["-E", "disk .sd[12]. is"],
        ["-n", "-E", "took 9[0-9]+ ms"],
    ):
        ours = call("grep", *words, packed)
        theirs = subprocess.run(["grep", *words, str(log)], capture_output=True, text=True)
        assert (ours.code, ours.out) == (theirs.returncode, theirs.stdout)
        assert ours.out
    nothing = call("grep", "no such line", packed)
    assert (nothing.code, nothing.out, nothing.err) == (1, "", "")
    assert json.loads(call("grep", "-c", "worker-3", packed, "--json").out)[0]["count"] > 100
    assert call("grep", "-E", "([", packed).code == 2


def test_globs_and_folders_pack_in_processes_as_one_by_one(call, log: Path) -> None:
    folder = log.parent / "many"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.log").write_bytes(log.read_bytes() * (i + 1))
    (folder / "3.log").write_bytes(b"")
    told = call(
        "pack", f"{folder}/[0-2].log", "--with", "logs.zstd", "-j", "2", "-o", log.parent / "out", "--json"
    )
    rows = json.loads(told.out)
    assert [Path(r["input"]).name for r in rows] == ["0.log", "1.log", "2.log"]
    for i in range(3):
        alone = call("pack", folder / f"{i}.log", "--with", "logs.zstd", "-o", log.parent / "alone")
        assert alone.code == 0
        assert (log.parent / "out" / f"{i}.log.hold").read_bytes() == (log.parent / "alone").read_bytes()


def test_one_that_fails_stops_nobody_else(call, log: Path) -> None:
    told = call("pack", log, log.parent / "gone.log", "--with", "logs.zstd", "-j", "2")
    assert told.code == 2 and "gone.log" in told.one_line()
    assert Path(f"{log}.hold").exists()


@pytest.mark.slow
def test_the_same_call_on_a_ray_cluster(log: Path) -> None:
    pytest.importorskip("ray")
    others = [log.with_name(f"{i}.log") for i in range(3)]
    for other in others:
        other.write_bytes(log.read_bytes())
    told = process(
        "pack", *others, "--with", "logs.zstd", "--engine", "ray", "-j", "2", "-o", log.parent / "ray"
    )
    assert told.code == 0, told.err
    local = process("pack", log, "--with", "logs.zstd", "-o", log.parent / "one.hold")
    assert local.code == 0
    for other in others:
        assert (log.parent / "ray" / f"{other.name}.hold").read_bytes() == (
            log.parent / "one.hold"
        ).read_bytes()


def test_the_input_is_never_the_output(call, log: Path) -> None:
    before = log.read_bytes()
    (log.parent / "link").symlink_to(log)
    for target in (log, log.parent / "link", log.parent / "." / "app.log"):
        told = call("pack", log, "-o", target)
        assert told.code == 2 and "another file" in told.one_line()
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "says"), [("e.log", b"", "empty"), ("n.bin", bytes(range(256)) * 40, "log")]
)
def test_empty_and_unknown_files(call, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    told = call("pack", tmp_path / name)
    assert told.code == 2 and says in told.one_line()
    assert os.listdir(tmp_path) == [name]


def test_an_output_that_cannot_be_written(call, log: Path) -> None:
    told = call("pack", log, "-o", log.parent / "no" / "such" / "x.hold")
    assert told.code == 2 and "folder that exists" in told.one_line()
    told = call("unpack", log, "-o", log.parent / "x")
    assert told.code == 2 and "damaged" in told.one_line()


def test_a_budget_that_cannot_be_met_names_the_least(call, log: Path) -> None:
    told = call("pack", log, "--budget", "10B")
    assert told.code == 2 and "the least that" in told.one_line()
    assert os.listdir(log.parent) == [log.name]


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # writes then fail with EFBIG, as on a full disk with ENOSPC


def test_a_full_disk_leaves_nothing_and_says_so(log: Path) -> None:
    before = log.read_bytes()
    told = process("pack", log, "--with", "logs.none", preexec_fn=_limit_files)
    assert told.code == 2 and "too large" in told.one_line()
    assert os.listdir(log.parent) == [log.name] and log.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs Linux and root")
def test_a_really_full_disk(log: Path, tmp_path: Path) -> None:
    small = tmp_path / "disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        told = process("pack", log, "--with", "logs.none", "-o", small / "x.hold")
        assert told.code == 2 and "No space left" in told.one_line()
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("big", [400])
def test_ctrl_c_leaves_nothing_half_written(log: Path, big: int) -> None:
    """A real SIGINT while a real pack is at work."""
    source = log.with_name("big.log")
    source.write_bytes(log.read_bytes() * big)
    before = source.stat()
    words = [*COMMAND, "pack", str(source), "--with", "logs.xz"]
    work = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    time.sleep(2.0)
    assert work.poll() is None, "it was done before we could interrupt it"
    work.send_signal(signal.SIGINT)
    _, err = work.communicate(timeout=60)
    assert work.returncode == 130
    assert err.strip() == "holdall: interrupted"
    assert sorted(os.listdir(log.parent)) == ["app.log", "big.log"]
    assert source.stat().st_mtime_ns == before.st_mtime_ns and source.stat().st_size == before.st_size


def test_a_closed_pipe_is_no_error(log: Path) -> None:
    process("pack", log, "--with", "logs.zstd")
    main = log.with_name("main.py")
    main.write_text(COMMAND[2])
    for _ in range(3):
        told = subprocess.run(
            ["bash", "-c", f"{sys.executable} {main} grep worker {log}.hold | head -1"],
            capture_output=True, text=True, env=ENV,
        )  # fmt: skip
        assert told.stderr == "" and told.stdout.count("\n") == 1


def test_urls_in_memory(call, log: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/cli/app.log", log.read_bytes())
    assert call("pack", "memory://cli/app.log").code == 0
    assert call("verify", "memory://cli/app.log.hold").code == 0
    assert call("unpack", "memory://cli/app.log.hold", "-o", "memory://cli/back.log").code == 0
    assert fs.cat("/cli/back.log") == log.read_bytes()
    assert "ERROR" in call("grep", "ERROR", "memory://cli/app.log.hold").out


def test_an_s3_server(call, log: Path, bucket: str) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.pipe(f"{bucket}/app.log", log.read_bytes())
    assert call("pack", f"s3://{bucket}/*.log", "--with", "logs.zstd").code == 0
    assert call("verify", f"s3://{bucket}/app.log.hold").code == 0
    assert call("unpack", f"s3://{bucket}/app.log.hold", "-o", log.with_name("back")).code == 0
    assert log.with_name("back").read_bytes() == log.read_bytes()
    told = call("info", f"s3://{bucket}/none.hold")
    assert told.code == 2 and "exists" in told.one_line()
