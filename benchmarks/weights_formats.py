"""Eight-bit formats side by side: theory, SmolLM2's matrices and activations, perplexity at equal bits, silicon.

    python benchmarks/weights_formats.py [--parts theory,matrices,activations,perplexity,silicon] [--windows 8]

theory: signal to noise in dB at the best range, by integration. matrices: how often each format loses least, with a
range for each row and for each matrix, all ranges searched alike. activations: inputs of every linear on 2,048 tokens
of WikiText-2 test, one range each (INT8 with a zero point, as activations have it). perplexity: one format for all
matrices, the best of each, and INT8 made of an E4M3 file. silicon: a formula, not a measurement. Results are merged
into results/weights_formats.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights_judge import Judge, text

from holdall.report import provenance
from holdall.weights import Formats, Model
from holdall.weights.float_formats import FORMATS, INT8, Format, quantised, searched, sqnr
from holdall.weights.format_theory import GAUSSIAN, UNIFORM, best, dearer, product_bits, student
from holdall.weights.perplexity import spread
from holdall.weights.texts import held_out_text

RESULTS = Path(__file__).parent / "results" / "weights_formats.json"
TOKENS = 2048


def show(name: str, row: dict[str, Any]) -> None:
    told = "  ".join(f"{k} {v:.5g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{name:34s}{told}", flush=True)


def theory(_x: Model, _judge: Judge | None) -> dict[str, Any]:
    densities = {"uniform": UNIFORM, "gaussian": GAUSSIAN} | {
        f"student {v}": student(v) for v in (10, 5, 4, 3)
    }
    found = {n: {f.name: best(f, p)[0] for f in FORMATS} for n, p in densities.items()}
    for name, row in found.items():
        show(name, row)
    return found


def matrices(x: Model, _judge: Judge | None) -> dict[str, Any]:
    """Every matrix inside the blocks, and a sample of the table's rows."""
    found: dict[str, Any] = {}
    for axis, told in ((1, "a range a row"), (None, "a range a matrix")):
        wins, rows = Counter({f.name: 0 for f in FORMATS}), []
        for name, tensor in x.state.items():
            if tensor.ndim == 2:
                w = tensor.numpy()[:: max(1, len(tensor) // 256)]
                ratios = {f.name: sqnr(w, quantised(w, f, searched(w, f, axis))) for f in FORMATS}
                wins[max(ratios, key=lambda n: ratios[n])] += 1
                rows.append((name, ratios))
        found[told] = {
            "wins": dict(wins),
            **{f"mean dB {f.name}": float(np.mean([r[f.name] for _, r in rows])) for f in FORMATS},
        }
        show(told, found[told])
    return found


def _shifted(x: np.ndarray) -> np.ndarray:
    """INT8 as activations have it: a step and a zero point for the whole tensor, both ends searched."""
    low, high = float(x.min()), float(x.max())
    best_error, kept = np.inf, x
    for shrink in np.linspace(0.05, 1.0, 40):
        step = max((high - low) * shrink / 255, 1e-30)
        zero = np.rint(-low * shrink / step)
        y = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
        error = float(np.square(y - x).sum())
        if error < best_error:
            best_error, kept = error, y
    return kept


def activations(x: Model, _judge: Judge | None) -> dict[str, Any]:
    module, ids = x.build(), x.tokenizer().encode(text("wikitext2-test-raw.txt", held_out_text())[:200_000])
    rows: dict[str, dict[str, float]] = {}

    def hook(name: str) -> Any:
        def look(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            seen = args[0].reshape(-1, args[0].shape[-1]).numpy()
            mine = {
                f.name: sqnr(seen, quantised(seen, f, searched(seen[::8], f))) for f in FORMATS if f != INT8
            }
            rows[name] = {"INT8": sqnr(seen, _shifted(seen)), **mine, "excess": _excess(seen)}

        return look

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear) and not name.endswith(("k_proj", "v_proj", "up_proj")):
            part.register_forward_pre_hook(
                hook(name)
            )  # those left out are given the same inputs as q and gate
    with torch.inference_mode():
        module(input_ids=spread(ids, 1, TOKENS)[:1], use_cache=False)
    wins = Counter(max((n for n in r if n != "excess"), key=lambda n, r=r: r[n]) for r in rows.values())  # type: ignore[misc]
    gains = {n: r["E4M3"] - r["INT8"] for n, r in rows.items()}
    most = max(gains, key=lambda n: gains[n])
    found = {
        "all": {
            "wins": dict(wins),
            "tensors": len(rows),
            "E4M3 better by 5 dB": sum(g > 5 for g in gains.values()),
        }
    }
    found[most] = dict(rows[most])
    for name, row in found.items():
        show(name, row)
    return found


def _excess(x: np.ndarray) -> float:
    """The largest over the root of the mean square: outliers."""
    return float(np.abs(x).max() / np.sqrt(np.square(x).mean()))


def perplexity(x: Model, judge: Judge | None) -> dict[str, Any]:
    assert judge is not None
    found = {}
    for name in [*(f.name for f in FORMATS), "auto"]:
        method = Formats(format=name)
        packed = method.encode(x)
        decoded = method.decode(packed)
        found[name] = judge(decoded.build(), packed.nbytes, x.elements)
        show(name, found[name])
        if name == "E4M3":
            again = Formats(format="INT8").encode(decoded)
            found["INT8 of E4M3"] = judge(method.decode(again).build(), again.nbytes, x.elements)
            show("INT8 of E4M3", found["INT8 of E4M3"])
    return found


def silicon(_x: Model, _judge: Judge | None) -> dict[str, Any]:
    def row(form: Format) -> dict[str, float]:
        return {"product_bits": product_bits(form), "more_than_int8": dearer(form)}

    found = {f.name: row(f) for f in FORMATS}
    for name, told in found.items():
        show(name, told)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="theory,matrices,activations,perplexity,silicon")
    parser.add_argument("--windows", type=int, default=8)
    asked = parser.parse_args()
    x = Model.read("smollm2")
    work = {
        "theory": theory,
        "matrices": matrices,
        "activations": activations,
        "perplexity": perplexity,
        "silicon": silicon,
    }
    for part in asked.parts.split(","):
        print(f"{part}:", flush=True)
        rows = work[part](x, Judge(x, asked.windows, 1024) if part == "perplexity" else None)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[part] = {"rows": rows, "provenance": provenance(windows=asked.windows)}
        RESULTS.write_text(json.dumps(found, indent=1))
    print(RESULTS)


if __name__ == "__main__":
    main()
