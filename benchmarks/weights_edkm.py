"""eDKM on SmolLM2-135M: what its way back is held in, what a step costs, and perplexity beside rounding.

    python benchmarks/weights_edkm.py [--parts memory,kmeans,3bit,3bit-text,2bit] [--steps 100] [--quick]

"memory" is one matrix of 576 x 1536 in bfloat16, eight centroids, three rounds: bytes held between forward and backward
by mechanism, gradients compared bit by bit, and seconds of the paper's maps and of maps of the different values alone.
Budgets are whole files at equal bytes to `weights_qat.py`'s: 60MB (most linears at 3 bits) and 45MB (at 2). "kmeans"
are the same palettes without training, with and without text; "3bit-text" learns from the text and not from the float
model. Protocol of the room (`weights_judge`): WikiText-2 test,
learned from WikiText-2 valid only; a novel that nothing was learned from beside it. Run with OMP_NUM_THREADS=1 and
MALLOC_MMAP_MAX_=0.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from weights_judge import Judges, keep, text

from holdall.weights import EDKM, Model, RoundToNearest
from holdall.weights.dkm import dkm, gap, naive_dkm, unique
from holdall.weights.edkm_run import Run
from holdall.weights.line_kmeans import exact
from holdall.weights.saved_tensors import Saving
from holdall.weights.texts import calibration_text

RESULTS = Path(__file__).parent / "results" / "weights_edkm.json"
MATRIX = "model.layers.0.mlp.down_proj.weight"
BUDGETS = {"3bit": "60MB", "2bit": "45MB"}
MECHANISMS: dict[str, dict[str, bool]] = {
    "each saved tensor by itself": {"marshal": False, "unique": False},
    "marshaling": {"unique": False},
    "uniquification": {"marshal": False},
    "both": {},
}


def plain(w: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(w_hat, bytes of the storages that autograd holds by itself, the weights not counted)."""
    storages: dict[int, Any] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage()._cdata] = t
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        hat, _ = naive_dkm(w, c, gap(c) ** 2 / 10, 3, -1.0)
    storages.pop(w.untyped_storage()._cdata, None)
    return hat, sum(t.untyped_storage().nbytes() for t in storages.values())


def memory(model: Model) -> dict[str, Any]:
    w = model.state[MATRIX].bfloat16()
    values, counts, _ = unique(w.contiguous().view(torch.int16), w.dtype)
    order = values.argsort()
    c = torch.from_numpy(exact(values[order].numpy(), counts[order].numpy(), 8)).float()
    given = torch.randn(w.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows: dict[str, Any] = {"weights": {"numbers": w.numel(), "different": len(values)}}
    grads = {}
    for name in ("plain autograd", *MECHANISMS, "maps of the different values alone"):
        leaf, saving = w.clone().requires_grad_(), Saving(**MECHANISMS.get(name, {}))
        begun = time.process_time()
        if name == "plain autograd":
            hat, held = plain(leaf, c)
        else:
            with saving.of(leaf):
                hat, _ = (dkm if "alone" in name else naive_dkm)(leaf, c, gap(c) ** 2 / 10, 3, -1.0)
            held = saving.held
        hat.backward(given)
        grads[name] = leaf.grad
        rows[name] = {"bytes": held, "cpu_seconds": time.process_time() - begun}
    for name in MECHANISMS:
        rows[name]["same_bits"] = float(
            torch.equal(*(grads[n].view(torch.int16) for n in (name, "plain autograd")))
        )
    leaf = w.double().requires_grad_()  # the same sums in 64 bits: what is true
    hat, _ = naive_dkm(leaf, c.double(), gap(c) ** 2 / 10, 3, -1.0)
    hat.backward(given.double())
    true = leaf.grad.norm()
    for name in ("plain autograd", "maps of the different values alone"):
        rows[name]["gradient_from_true"] = float((grads[name].double() - leaf.grad).norm() / true)
    return rows


def tuned(method: EDKM, budget: str, judges: Judges) -> dict[str, Any]:
    begun, wall = time.process_time(), time.time()
    run = Run(method, judges.model, method.allowed(judges.model, budget))
    packed = run.packed()
    told = {"cpu_seconds": time.process_time() - begun, "seconds": time.time() - wall}
    widths = list(run.widths.values())
    told["losses"] = run.losses
    return judges(method, packed) | told | {"widths": {str(b): widths.count(b) for b in sorted(set(widths))}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="memory,kmeans,3bit,3bit-text,2bit")
    parser.add_argument("--steps", type=int, default=100, help="of fine-tuning, 512 tokens each")
    parser.add_argument("--windows", type=int, default=4, help="of 1,024 tokens to judge on")
    parser.add_argument("--quick", action="store_true", help="few steps and windows, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    model, parts = Model.read("smollm2"), asked.parts.split(",")
    model.calibration = text("wikitext2-valid.txt", calibration_text())
    judges = (
        Judges(model, *((1, 256) if asked.quick else (asked.windows, 1024))) if parts != ["memory"] else None
    )
    method = EDKM(steps=2 if asked.quick else asked.steps)
    for part in parts:
        if judges is None or part == "memory":
            rows = memory(model)
        elif part == "kmeans":
            rows = {f"rtn {b} bit": judges(r := RoundToNearest(bits=b), r.encode(model)) for b in (2, 3)}
            for bits, budget in BUDGETS.items():
                rows[f"{bits}, k-means with text"] = tuned(method.but(steps=0), budget, judges)
                rows[f"{bits}, k-means"] = tuned(method.but(steps=0, weighted=False), budget, judges)
        else:
            bits, _, alone = part.partition("-")
            way = method.but(distill=0.0) if alone else method
            name = f"{bits}, {method.steps} steps{', the text alone' if alone else ''}"
            rows = {name: tuned(way, BUDGETS[bits], judges)}
        keep(part, rows, asked.out, method)


if __name__ == "__main__":
    main()
