"""EfficientQAT on SmolLM2-135M, stage by stage: file bytes, perplexity ratio, top-1 agreement.

    python benchmarks/weights_qat.py [--parts corner,rtn,45MB,60MB,grids] [--quick] [--cache FOLDER]

Protocol of the room (`weights_judge`): 8 windows of 1,024 tokens of WikiText-2 test, training on WikiText-2 valid only
(without ../shared: Python's language reference, two halves), and as a second text the novel that nothing was trained
on. A part is a budget: its rows are the file before the end-to-end training and after it. "grids" is the first budget
with s and z trained alone, "rtn" plain rounding, "corner" the errors of two small blocks by start and by what learns.
--cache keeps what a killed run had finished: the same command then goes on. Run with OMP_NUM_THREADS=1 and
MALLOC_MMAP_MAX_=0 (glibc then keeps its pages, which saves a third of the time).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from weights_judge import Judges, keep, text

from holdall.weights import EfficientQAT, Model, RoundToNearest, quality
from holdall.weights.qat_run import Run
from holdall.weights.texts import calibration_text

RESULTS = Path(__file__).parent / "results" / "weights_qat.json"
METHOD = EfficientQAT(windows=64, steps=100)
QUICK = EfficientQAT(windows=8, steps=8, window=128)


def trained(method: EfficientQAT, budget: str, judges: Judges, cache: Path) -> dict[str, Any]:
    """The rows of one budget."""
    to = cache / f"{budget}-{method.learned}.hold"
    started, cpu = time.time(), time.process_time()
    run = Run(method, judges.model, str(to), method.allowed(judges.model, budget))
    packed = run.packed()
    cpu, wall = time.process_time() - cpu, time.time() - started
    widths = list(run.plan.widths.values())
    told = {
        "cpu_seconds": cpu,
        "seconds": wall,
        "widths": {str(b): widths.count(b) for b in sorted(set(widths))},
    }
    errors = [(e["before"], e["after"]) for e in run.errors]
    rows = {
        f"{budget} {method.learned}, blocks": judges(method, run.written(run.blocks))
        | {"block_errors": errors}
        | told
    }
    if method.steps:
        rows[f"{budget} {method.learned}, end to end"] = judges(method, packed) | told
    packed.save(str(to))
    return rows


def rounded(judges: Judges) -> dict[str, Any]:
    methods = {bits: RoundToNearest(bits=bits) for bits in (2, 3, 4)}
    return {f"rtn {bits} bit": judges(m, m.encode(judges.model)) for bits, m in methods.items()}


def corner() -> dict[str, Any]:
    """Error of each block's outputs at 2 bits, of a corner of the model that trains in seconds."""
    model, rows = quality.real(), {}
    base = EfficientQAT(bits=2, steps=0)
    for start in ("minmax", "search", "feedback"):
        for learned in ("nothing", "grids", "all"):
            run = Run(base.but(start=start, learned=learned), model, None, None)
            run.packed()
            errors = {f"block_{k}": e["after"] for k, e in enumerate(run.errors)}
            rows[f"{start}, learned {learned}"] = errors
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="corner,rtn,45MB,60MB,grids")
    parser.add_argument("--quick", action="store_true", help="a few windows and steps, to see that it runs")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--windows", type=int, default=METHOD.windows, help="calibration windows of 256 tokens"
    )
    asked = parser.parse_args()
    model = Model.read("smollm2")
    model.calibration = text("wikitext2-valid.txt", calibration_text())
    method = QUICK if asked.quick else METHOD.but(windows=asked.windows)
    judges = Judges(model, *((1, 256) if asked.quick else (8, 1024))) if asked.parts != "corner" else None
    with tempfile.TemporaryDirectory() as folder:
        cache = asked.cache or Path(folder)
        for part in asked.parts.split(","):
            if part == "corner":
                rows = corner()
            elif part == "rtn":
                rows = rounded(judges)
            elif part == "grids":
                rows = trained(method.but(learned="grids", steps=0), "45MB", judges, cache)
            else:
                rows = trained(method, part, judges, cache)
            keep(part, rows, asked.out, method)


if __name__ == "__main__":
    main()
