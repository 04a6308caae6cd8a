"""Eight operators for networks of signs, on BiBench's six tracks, in minutes on one core.

    OMP_NUM_THREADS=1 python benchmarks/weights_binary.py --quick        (some 10 minutes of one core)
    OMP_NUM_THREADS=1 python benchmarks/weights_binary.py --long         (some 3: ResNet on sounds, Adam, 30 epochs)
    OMP_NUM_THREADS=1 python benchmarks/weights_binary.py                (some 50)

Two tasks (handwritten digits, synthetic sounds) x two networks (ResNet of three stages, two-layer Transformer) x float
and eight operators x two optimisers x three seeds; `--quick`: 8 epochs instead of 30, and one seed for the
Transformer. Training as a user would: `Binary(...).fit`; accuracies are those of the packed file, loaded again. Runs
that are in the results already are not run again (`--again` forgets them). Results: results/weights_binary.json.
Kernels and bytes have a benchmark of their own, `weights_binary_speed.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from weights_binary_nets import CORRUPTIONS, NETS, SEVERITIES, TASKS, built, corrupted

from holdall.report import provenance
from holdall.weights import Binary, binarize
from holdall.weights import binary_tracks as tracks
from holdall.weights.binary_file import sizes
from holdall.weights.binary_layers import candidates
from holdall.weights.binary_operators import OPERATORS
from holdall.weights.training import accuracy, evaluated, learn, parameter_bytes

RESULTS = Path(__file__).parent / "results" / "weights_binary.json"
RULES = ("adam", "sgd")
SPOILED = ("images", "resnet")  # what corruptions are tried on
FLOAT = "float"


def run(task: str, net: str, operator: str, rule: str, seed: int, epochs: int) -> dict[str, Any]:
    data, held = TASKS[task](64)
    module, before = built(net, seed), time.process_time()
    if operator == FLOAT:
        optimiser = (
            torch.optim.AdamW(module.parameters(), 3e-3)
            if rule == "adam"
            else torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        )
        torch.manual_seed(seed)
        learn(module, data, optimiser, epochs)
        spent, given = time.process_time() - before, module.eval()
        row = {"bytes": parameter_bytes(module)}
    else:
        trained = Binary(operator=operator, optimizer=rule, epochs=epochs).fit(module, data, seed=seed)
        spent, given = time.process_time() - before, trained.model
        row = {"bytes": trained.packed.nbytes, "layers": sizes(trained.packed, module)}
    row |= {"accuracy": accuracy(given, held), "train_accuracy": accuracy(given, data), "seconds": spent}
    if (task, net) == SPOILED:
        row["spoiled"] = {
            kind: [accuracy(given, corrupted(held, kind, level + 1)) for level in range(SEVERITIES)]
            for kind in CORRUPTIONS
        }
    return row


def key(*setting: Any) -> str:
    return "/".join(map(str, setting))


def all_runs(epochs: int, quick: bool, known: dict[str, Any]) -> dict[str, Any]:
    rows = dict(known)
    for task, net in product(TASKS, NETS):
        for seed in range(1 if quick and net != "resnet" else 3):
            for operator, rule in product([FLOAT, *OPERATORS], RULES):
                name = key(task, net, operator, rule, seed, epochs)
                if name not in rows:
                    rows[name] = run(task, net, operator, rule, seed, epochs)
                    save({"runs": rows})
                print(f"{name:45s}{rows[name]['accuracy']:.3f}  {rows[name]['seconds']:.1f} s", flush=True)
    return rows


def long_runs(known: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What the quick form leaves open: the ResNet on sounds, Adam, 30 epochs, three seeds of some operators."""
    rows, found = dict(known), {}
    for operator in (FLOAT, "bnn", "bireal", "reactnet"):
        names = [key("sounds", "resnet", operator, "adam", seed, 30) for seed in range(3)]
        for seed, name in enumerate(names):
            if name not in rows:
                rows[name] = run("sounds", "resnet", operator, "adam", seed, 30)
                save({"runs": rows})
            print(f"{name:45s}{rows[name]['accuracy']:.3f}  {rows[name]['seconds']:.1f} s", flush=True)
        given = [rows[n]["accuracy"] for n in names]
        found[operator] = {"mean": tracks.mean(given), "deviation": tracks.deviation(given)}
    return found


def save(more: dict[str, Any]) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(found | more, indent=1))


class Table:
    """Runs, asked by setting."""

    def __init__(self, runs: dict[str, Any], epochs: int):
        self.rows = [(k.split("/"), r) for k, r in runs.items() if k.endswith(f"/{epochs}")]

    def some(self, **wanted: str) -> list[dict[str, Any]]:
        places = ("task", "net", "operator", "rule", "seed")
        return [r for k, r in self.rows if all(k[places.index(n)] == v for n, v in wanted.items())]

    def accuracy(self, **setting: str) -> float:
        return tracks.mean([r["accuracy"] for r in self.some(**setting)])

    def rule(self, **setting: str) -> str:
        """The better optimiser, by the mean of its seeds."""
        return max(RULES, key=lambda rule: self.accuracy(rule=rule, **setting))

    def best(self, **setting: str) -> float:
        return self.accuracy(rule=self.rule(**setting), **setting)

    def ratio(self, task: str, net: str, operator: str) -> tuple[float, float]:
        here = {"task": task, "net": net}
        return self.best(operator=operator, **here), self.best(operator=FLOAT, **here)

    def gaps(self, operator: str) -> dict[str, float]:
        setting = {"task": SPOILED[0], "net": SPOILED[1], "operator": operator}
        runs = self.some(rule=self.rule(**setting), **setting)
        return {
            kind: tracks.mean([tracks.gap(r["accuracy"], r["spoiled"][kind]) for r in runs])
            for kind in CORRUPTIONS
        }


def inference(net: str, operator: str) -> tuple[float, float, float, float]:
    """(seconds float, packed; bytes float, packed) for a batch of 64, best of 60 in turn."""
    (x, y), module = TASKS["images"](64)[0][0], built(net, 0)
    packed = Binary(operator=operator).pack(binarize(module, operator, example=(x, y)), (x, y))
    both, best = (module, Binary(operator=operator).load(packed, module)), [1e9, 1e9]
    for _ in range(60):
        for i, given in enumerate(both):
            with evaluated(given):
                before = time.perf_counter()
                given(x)
                best[i] = min(best[i], time.perf_counter() - before)
    return best[0], best[1], parameter_bytes(module), packed.nbytes


def all_inference() -> dict[str, list[tuple[float, float, float, float]]]:
    """operator -> `inference` of each network, the float one's time the best of all that were taken of it."""
    taken = {o: [inference(n, o) for n in NETS] for o in OPERATORS}
    best = [min(rows[i][0] for rows in taken.values()) for i in range(len(NETS))]
    return {o: [(best[i], *row[1:]) for i, row in enumerate(rows)] for o, rows in taken.items()}


def judged(
    table: Table, operator: str, measured: list[tuple[float, float, float, float]]
) -> dict[str, float]:
    ratios = {(t, n): table.ratio(t, n, operator) for t, n in product(TASKS, NETS)}
    float_gaps, gaps = table.gaps(FLOAT), table.gaps(operator)
    seconds, spreads = [], []
    for task, net in ratios:
        pair = [table.some(task=task, net=net, operator=o) for o in (FLOAT, operator)]
        seconds.append(tuple(tracks.mean([r["seconds"] for r in rows]) for rows in pair))
        spreads.append(tuple(tracks.deviation([r["accuracy"] for r in rows]) for rows in pair))
    counted = [
        tracks.complexity(m, list(candidates(m)), TASKS["images"](64)[0][0])
        for m in (built(n, 0) for n in NETS)
    ]
    return {
        **{f"{t}/{n}": b for (t, n), (b, _) in ratios.items()},
        **{f"{n} ratio": tracks.mean([b / f for (_, m), (b, f) in ratios.items() if m == n]) for n in NETS},
        "tasks": tracks.accuracy_track({t: [ratios[t, n] for n in NETS] for t in TASKS}),
        "architectures": tracks.accuracy_track({n: [ratios[t, n] for t in TASKS] for n in NETS}),
        "robustness": tracks.robustness_track({k: (float_gaps[k], gaps[k]) for k in CORRUPTIONS}),
        "training": tracks.training_track(seconds, spreads),
        "complexity": tracks.complexity_track([c.operations for c in counted], [c.storage for c in counted]),
        "inference": tracks.inference_track([m[:2] for m in measured], [m[2:] for m in measured]),
        **{f"{n} speed": m[0] / m[1] for n, m in zip(NETS, measured, strict=True)},
    }


def show(rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(" | ".join(["", *names]))
    for operator, row in rows.items():
        print(" | ".join([operator, *(f"{row[n]:.3g}" if n in row else "" for n in names)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--long", action="store_true", help="only the runs of 30 epochs that the quick form misses most"
    )
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    asked = parser.parse_args()
    epochs = 8 if asked.quick else 30
    known = json.loads(RESULTS.read_text()).get("runs", {}) if RESULTS.exists() and not asked.again else {}
    if asked.long:
        found = long_runs(known)
        show(found)
        save({"long": {"rows": found, "provenance": provenance(epochs=30)}})
        return
    runs = all_runs(epochs, asked.quick, known)
    table = Table(runs, epochs)
    floats = {f"{t}/{n}": table.best(task=t, net=n, operator=FLOAT) for t, n in product(TASKS, NETS)}
    measured = all_inference()
    rows = {operator: judged(table, operator, measured[operator]) for operator in OPERATORS}
    show({**rows, FLOAT: floats})
    gaps = {operator: table.gaps(operator) for operator in [FLOAT, *OPERATORS]}
    print("what corruptions cost, mean of five severities:")
    show(gaps)
    told = {"tracks": rows, "float": floats, "gaps": gaps, "provenance": provenance(epochs=epochs)}
    save({"quick" if asked.quick else "full": told})
    print(RESULTS)


if __name__ == "__main__":
    main()
