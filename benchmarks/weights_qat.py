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
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from weights_judge import TEXTS, Judge, text

from holdall.packed import Packed
from holdall.report import provenance
from holdall.weights import EfficientQAT, Model, RoundToNearest, quality
from holdall.weights.perplexity import compare, spread
from holdall.weights.qat_run import Run
from holdall.weights.texts import calibration_text, held_out_text

RESULTS = Path(__file__).parent / "results" / "weights_qat.json"
METHOD = EfficientQAT(windows=64, steps=100)
QUICK = EfficientQAT(windows=8, steps=8, window=128)


class Judges:
    def __init__(self, model: Model, quick: bool):
        self.model = model
        self.first = Judge(model, 1 if quick else 8, 256 if quick else 1024)
        novel = text("war-and-peace.txt", held_out_text())[100_000:400_000]
        self.second = spread(model.tokenizer().encode(novel), 2 if quick else 4, 256 if quick else 1024)
        self.reference = model.build()

    def __call__(self, packed: Packed) -> dict[str, float]:
        module = EfficientQAT().decode(packed).build()
        row = self.first(module, packed.nbytes, self.model.elements)
        other = compare(self.reference, module, self.second)
        return row | {"second_ratio": other["perplexity_ratio"], "second_top1": other["top1"]}


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
        f"{budget} {method.learned}, blocks": judges(run.written(run.blocks))
        | {"block_errors": errors}
        | told
    }
    if method.steps:
        rows[f"{budget} {method.learned}, end to end"] = judges(packed) | told
    packed.save(str(to))
    return rows


def rounded(judges: Judges) -> dict[str, Any]:
    return {f"rtn {bits} bit": judges(RoundToNearest(bits=bits).encode(judges.model)) for bits in (2, 3, 4)}


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
    judges = Judges(model, asked.quick) if asked.parts != "corner" else None
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


def keep(part: str, rows: dict[str, Any], out: Path, method: EfficientQAT) -> None:
    found = json.loads(out.read_text()) if out.exists() else {}
    found[part] = {"rows": rows, "provenance": provenance(method=method.to_dict(), texts=TEXTS.exists())}
    out.write_text(json.dumps(found, indent=1) + "\n")
    for name, row in rows.items():
        shown = {k: v for k, v in row.items() if isinstance(v, float | int)}
        print(f"{name:34s}" + "  ".join(f"{k} {v:.5g}" for k, v in shown.items()), flush=True)


if __name__ == "__main__":
    main()
