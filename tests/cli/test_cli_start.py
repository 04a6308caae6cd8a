"""Starting is quick, helping is complete, mistakes are one line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest
from cli.processes import ENV, process

VERBS = ("pack", "unpack", "info", "verify", "run", "serve", "grep", "measure", "methods", "show")


def _best(code: str, tries: int = 5) -> float:
    """CPU seconds of the quickest of some starts: other work on the machine is not ours to count."""
    times = []
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=ENV)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def _running(verb: str) -> str:
    call = "from holdall.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    return f"import sys; sys.argv = ['holdall', {verb!r}]\n{call}"


def test_import_is_light_and_loads_nothing_heavy() -> None:
    bare = _best("pass")
    assert _best("import holdall") - bare < 0.1
    heavy = ("torch", "numba", "transformers", "numpy", "rich")
    probe = f"import sys, holdall.cli; print([m for m in {heavy} if m in sys.modules])"
    assert process_code(probe) == "[]"


def process_code(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=ENV
    ).stdout.strip()


def test_help_takes_little_more_than_the_libraries_that_print_it() -> None:
    """Beside the help of a program of one command, in the same minute: times alone say how busy a machine is."""
    one = (
        "import sys, typer; sys.argv = ['one', '--help']; app = typer.Typer(); app.command()(lambda: None)\n"
    )
    assert _best(_running("--help")) < 2 * _best(f"{one}try: app()\nexcept SystemExit: pass\n")


def test_help_names_every_verb_and_its_options(call) -> None:
    told = call("--help")
    assert told.code == 0 and all(verb in told.out for verb in VERBS)
    for verb in VERBS:
        assert "--json" in call(verb, "--help").out
    assert "--engine" in call("pack", "--help").out


def test_listing_methods_loads_no_torch() -> None:
    out = process_code(_running("methods") + "print([m for m in ('torch', 'numba') if m in sys.modules])")
    assert out.splitlines()[-1] == "[]" and "kv.snapkv" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["frob"], "frob"),
        (["pack"], "INPUT"),
        (["pack", "nowhere.log"], "exists"),
        (["pack", "no*thing.log"], "matches"),
        (["pack", "x", "--with", "logs.ztsd"], "logs.zstd"),
        (["pack", "x", "--budget", "lots"], "budget"),
        (["methods", "attic"], "attic"),
        (["show", "kv.snapvk"], "kv.snapkv"),
        (["verify", "nowhere.hold"], "exists"),
        (["info", "nowhere.hold"], "exists"),
        (["unpack", "nowhere.hold", "-o", "x"], "exists"),
        (["grep", "x", "nowhere.hold"], "exists"),
        (["run", "nowhere", "hello"], "exists"),
        (["run", "nowhere", "hello", "--with", "logs.zstd"], "kv"),
        (["measure", "kv.snapkv", "--windwo", "3"], "--window"),
        (["pack", "ftp-not-a-scheme://x/y"], "URL"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(call, words: list[str], says: str) -> None:
    told = call(*words)
    assert told.code == 2
    assert says in told.one_line()
    assert told.out == ""


def test_a_mistake_is_one_line_and_code_2_as_a_real_process() -> None:
    told = process("pack", "nowhere.log")
    assert told.code == 2 and "nowhere.log" in told.one_line()


def test_methods_and_show_tell_what_the_classes_say(call) -> None:
    import holdall

    rows = json.loads(call("methods", "--json").out)
    assert [r["method"] for r in rows] == list(holdall.methods())
    assert all(r["does"] and r["kind"] for r in rows)
    shown = call("show", "kv.snapkv").out
    for word in ("--window", "Differs from the paper", "tokens", "SnapKV", "https://"):
        assert word in shown
    told = json.loads(call("show", "kv.snapkv", "--json").out)
    assert told["paper"]["number"] == 77 and told["knobs"][0]["option"] == "--window"


@pytest.mark.parametrize(("given", "seen"), [(None, "PASSIVE"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given: str | None, seen: str) -> None:
    script = (
        "import os, sys; sys.argv[1:] = ['methods']\n"
        "from holdall.cli import main\n"
        "try: main()\n"
        "finally: sys.stderr.write(os.environ['OMP_WAIT_POLICY'])"
    )
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | (
        {"OMP_WAIT_POLICY": given} if given else {}
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, seen)
