"""Generated pages are what the classes say today, and every method names a test that exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import holdall

ROOT = Path(__file__).resolve().parent.parent


def test_generated_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", list(holdall.methods()))
def test_every_method_names_a_test_that_exists(name):
    told = re.search(r"Test: (\S+)", holdall.get(name).__doc__ or "")
    assert told and (ROOT / told[1]).is_file(), f"{name} names {told and told[1]}"
