"""The first journey: fit a real language model and a real log into a budget, use them, and see what it cost.

`make demo` runs this. Every step is a command that you can type yourself. What was packed and measured stays in
`build/demo` and is used again by the next run; `make clean` or deleting that folder starts anew.
"""

from __future__ import annotations

import json
import lzma
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from holdall import Packed, Report, __version__
from holdall.optional import need
from holdall.progress import track
from holdall.report import provenance

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT / "build" / "demo"
LOG = ROOT / ".venv" / "install.log"
HOLD = STAGE / "smollm2.hold"
BUDGET = "70MB"  # of the file: all that is needed, tokenizer and configuration included
MEMORY = "220MB"  # for running it: weights, context and workspace
KV = "25%"
SERVED = ("42MB", "45MB", "48MB", "51MB", "54MB", "57MB", "60MB", "63MB", "66MB", "70MB")
TOPICS = ("with", "raise", "binary")  # of the Python language reference, about 2,700 tokens
QUESTION = "Question: what does the raise statement do?"
WINDOWS, WINDOW = 4, 512  # of held-out text, for perplexity


def main() -> None:
    STAGE.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    pack_the_model()
    ask_it()
    log = keep_the_log()
    facts = measured()
    show(facts, log)
    say(f"\ndone in {time.perf_counter() - start:.0f} s; all of it lies in {STAGE.relative_to(ROOT)}")


def pack_the_model() -> None:
    heading("1. A language model that a Python package carries, packed into a budget")
    if HOLD.exists() and recipe().get("version") == __version__:
        say(f"{HOLD.name} is there from the last run")
    else:
        holdall("pack", "smollm2", "--with", "weights.bitstack", "--budget", BUDGET, "-o", str(HOLD))
        (STAGE / "recipe.json").write_text(json.dumps({"version": __version__}))
    holdall("verify", str(HOLD))


def recipe() -> dict[str, Any]:
    path = STAGE / "recipe.json"
    return json.loads(path.read_text()) if path.exists() else {}


def passage() -> Path:
    from pydoc_data.topics import topics

    path = STAGE / "reference.txt"
    path.write_text(
        "\n\n".join(["Here is a chapter of a manual.", *(topics[name].strip() for name in TOPICS)])
    )
    return path


def ask_it() -> None:
    heading(f"2. Asked about a long text, from that one file, within {MEMORY}; its context held at {KV}")
    tail = ["--memory", MEMORY, "--kv", KV, "--with", "kv.snapkv", "-n", "24", QUESTION]
    holdall("run", str(HOLD), *tail, stdin=passage())


def keep_the_log() -> dict[str, dict[str, float]]:
    """Pack, grep and unpack the log of this environment's own installation."""
    heading("3. A real log: what pip wrote while it installed this")
    packed, back = STAGE / "install.log.hold", STAGE / "install.log"
    original = LOG.read_bytes()
    sizes, key = STAGE / "log.json", xxhash.xxh3_128_hexdigest(original)
    told = json.loads(sizes.read_text()) if sizes.exists() else {}
    if told.get("log") == key:
        say(f"{packed.name} is there from the last run")
    else:
        holdall("pack", str(LOG), "--with", "logs.logzip", "-o", str(packed))
    holdall("grep", "-n", "Successfully installed", str(packed), cut=150)
    holdall("unpack", str(packed), "-o", str(back))
    assert back.read_bytes() == original, "the log came back changed"
    say(f"unpacked: the same {len(original):,} bytes")
    if told.get("log") != key:
        zstd = need("zstandard", "logs").ZstdCompressor(level=19)
        told = {
            "log": key,
            "zstd -19": len(zstd.compress(original)),
            "xz -9e": len(lzma.compress(original, preset=9 | lzma.PRESET_EXTREME)),
        }
        sizes.write_text(json.dumps(told))
    found = {"pip's log": len(original), **told, "logs.logzip": packed.stat().st_size}
    return {name: {"bytes": size} for name, size in found.items() if name != "log"}


def measured() -> dict[str, Any]:
    """What packing cost; measured once for each artefact."""
    heading("4. What it cost, measured")
    path = STAGE / "measured.json"
    with Packed.open(str(HOLD)) as packed:
        key = {"file": packed.nbytes, "sums": repr(sorted(packed.meta)), "version": __version__}
    if path.exists() and (told := json.loads(path.read_text()))["key"] == key:
        say(f"measured on {told['when']}, with this same file")
        return told
    steps: dict[str, Callable[[], Any]] = {
        "original": lambda: running("smollm2"),
        "packed": lambda: running(str(HOLD), "--memory", MEMORY, "--kv", KV, "--with", "kv.snapkv"),
        "recall": needles,
        "served": served,
    }
    told = {"key": key, "when": time.strftime("%Y-%m-%d %H:%M")}
    told |= {name: step() for name, step in track(steps.items(), "measuring")}
    path.write_text(json.dumps(told))
    return told


def running(model: str, *options: str) -> dict[str, float]:
    """Memory and speed of answering the same question, in a process of its own."""
    command = [sys.executable, "-m", "holdall", "run", model, *options, "-n", "24", "--json", QUESTION]
    with passage().open() as text:
        done = subprocess.run(command, stdin=text, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return {k: told[k] for k in ("peak_bytes", "tokens_per_second", "kv_bytes")}


def needles() -> dict[str, float]:
    """Ten facts hidden in 2,048 tokens: the original with its whole context, the packed one with a quarter."""
    from holdall import get
    from holdall.kv.quality import measure

    method = get("kv.snapkv")()
    whole = measure(method, KV, model="smollm2", on="needle", quick=True)
    small = measure(method, KV, model=str(HOLD), on="needle", quick=True)
    return {"original": whole["recall_full"], "original_kv": whole["recall"], "packed": small["recall"]}


def served() -> dict[str, dict[str, float]]:
    """Perplexity on held-out text at every budget that the one file serves, and of the original."""
    from holdall import get
    from holdall.weights.model import Model
    from holdall.weights.perplexity import mean_loss, spread
    from holdall.weights.texts import held_out_text

    source = Model.read("smollm2")
    tokens = spread(source.tokenizer().encode(held_out_text()), WINDOWS, WINDOW)
    found = {
        "original": {"bytes": source.nbytes, "perplexity": float(np.exp(mean_loss(source.build(), tokens)))}
    }
    del source
    with Packed.open(str(HOLD)) as packed:
        module = get("weights.bitstack")().open(packed, SERVED[0])
        for budget in track(SERVED, "perplexity at each budget"):
            module.holdall_stack.change(budget)
            size = module.holdall_stack.nbytes
            found[budget] = {"bytes": size, "perplexity": float(np.exp(mean_loss(module, tokens)))}
    return found


def show(facts: dict[str, Any], log: dict[str, dict[str, float]]) -> None:
    from holdall.picture import curves

    table = facts["served"]
    recall = facts["recall"]
    rows = {
        "original, whole context": {
            **table["original"],
            **facts["original"],
            "needle_recall": recall["original"],
        },
        f"packed, {KV} of the context": {
            **table[SERVED[-1]],
            **facts["packed"],
            "needle_recall": recall["packed"],
        },
    }
    units = {"kv_bytes": "B", "peak_bytes": "B"}
    facts_of = provenance(budget=BUDGET, memory=MEMORY, kv=KV, text="held-out topics of pydoc_data")
    report = Report(rows, next(iter(rows)), units, facts_of)
    logs = Report(log, "pip's log")
    say(report.as_table(title="\nSmolLM2-135M-Instruct"))
    say(logs.as_table(title="\npip's own log"))
    png, page = STAGE / "stack.png", STAGE / "stack.html"
    points = {
        "one BitStack file, opened at each size": [
            (table[b]["bytes"], table[b]["perplexity"]) for b in SERVED
        ],
        "original": [(table["original"]["bytes"], table["original"]["perplexity"])],
    }
    curves(
        points, str(png), title="SmolLM2-135M: bytes against quality", x="read from the file (bytes)",
        y="perplexity on held-out text", log_y=True, page=str(page), table=report,
        notes=[f"Measured on {facts['when']}: {facts_of['machine']}."],
    )  # fmt: skip
    say(f"\npicture: {png.relative_to(ROOT)} and {page.relative_to(ROOT)}")


def holdall(*arguments: str, stdin: Path | None = None, cut: int | None = None) -> None:
    """Run a command of Holdall as a user would, and show it. cut: the longest line that is printed."""
    shown = [str(Path(a).relative_to(ROOT)) if a.startswith(str(ROOT)) else a for a in arguments]
    say("$ holdall " + shlex.join(shown) + (f" < {stdin.relative_to(ROOT)}" if stdin else ""))
    command = [sys.executable, "-m", "holdall", *arguments]
    with (stdin or Path("/dev/null")).open() as text:
        done = subprocess.run(
            command, stdin=text, stdout=subprocess.PIPE if cut else None, text=True, check=True
        )
    for line in (done.stdout or "").splitlines():
        say(line if len(line) <= (cut or 0) else line[:cut] + " ...")


def heading(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
