"""The README's session is run as it stands; its figures come out again, but for times and memory."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def session():
    """[(command, lines that it prints)] of the console block."""
    block = re.search(r"```console\n(.*?)```", TEXT, re.DOTALL)
    assert block
    parts = re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]
    return [(part.splitlines()[0], part.splitlines()[1:]) for part in parts]


def comparable(line):
    """A line without what depends on the machine: seconds and peak memory."""
    return re.sub(r"[\d.]+ s\b|peak [\d.]+ [kMG]?B", "", line).split()


@pytest.mark.slow
def test_the_session_prints_what_it_says(tmp_path):
    shutil.copy(ROOT / "tests" / "golden" / "logs-logzip-v1.log", tmp_path / "app.log")
    for command, told in session():
        words = shlex.split(command)
        assert words[0] == "holdall"
        done = subprocess.run(
            [sys.executable, "-m", "holdall", *words[1:]],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        got = (done.stdout + done.stderr).splitlines()
        assert done.returncode == (2 if told[0].startswith("holdall:") else 0), got
        assert len(got) == len(told), f"{command}: {got}"
        for mine, theirs in zip(map(comparable, got), map(comparable, told), strict=True):
            assert len(mine) == len(theirs), f"{command}: {mine} for {theirs}"
            for a, b in zip(mine, theirs, strict=True):
                assert a == b or close(a, b), f"{command}: {a} for {b}"


def close(a, b):
    """Within 2 %: the same factors may round otherwise on another processor."""
    x, y = (re.sub(r"[(),x]", "", t) for t in (a, b))
    try:
        return abs(float(x) - float(y)) <= 0.02 * abs(float(y))
    except ValueError:
        return False


def test_its_links_and_commands_exist():
    for link in re.findall(r"\]\(([\w/.-]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    targets = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+(?:-\w+)?)", TEXT)):
        assert re.search(rf"^{target}:|bench-", targets, re.MULTILINE), target
