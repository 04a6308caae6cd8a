"""Adapters of one bit beside adapters of floats: accuracy and loss by bytes, and the five lines of the paper's card.

    python benchmarks/weights_adapters.py [--parts digits,style] [--seeds 5] [--quick]

digits: a small transformer of image patches learns the digits 0 to 4, is frozen, and learns 5 to 9 by adapters beside
its MLPs, with a new network and new adapters for each seed. All arms take the same steps at the same rate, each at the
scale that a sweep on seed 0 found best for it on training batches. style: SmolLM2 packed at 4 bits learns Shakespeare's
plays, judged on their last tenth; rows of peft are there if it is installed. Bytes are those of the sections; a whole
file has about 700 more. Run with OMP_NUM_THREADS=1; both parts take some fifteen minutes of CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from weights_judge import text

from holdall.packed import Packed
from holdall.report import provenance
from holdall.weights import BinaryAdapters, Model, RoundToNearest
from holdall.weights.adapter_modules import adapters_of, frozen
from holdall.weights.adapter_rehearsal import classes, pretrained
from holdall.weights.adapter_text import Windows, base, parted
from holdall.weights.texts import held_out_text
from holdall.weights.training import accuracy, held_out_loss, learn, outputs

RESULTS = Path(__file__).parent / "results" / "weights_adapters.json"
ARMS = {"1 bit, h 32": (1, 32), "float32, h 32": (32, 32), "float32, h 1": (32, 1), "float16, h 2": (16, 2)}
SCALES = (0.1, 1.0, 10.0)
DIGITS = BinaryAdapters(rate=1e-2, epochs=40)
STYLES = {  # (recipe, seeds at most)
    "1 bit, h 32, mlp": (BinaryAdapters(width=32, epochs=1), 5),
    "float32, h 1, mlp": (BinaryAdapters(bits=32, width=1, epochs=1), 5),
    "1 bit, h 16, lora": (BinaryAdapters(width=16, placement="lora", epochs=1, rate=1e-2), 2),
    "float16, h 1, lora": (BinaryAdapters(bits=16, width=1, placement="lora", epochs=1, rate=1e-2), 2),
}
WINDOW = 128
Rows = dict[str, list[dict[str, float]]]


def section_bytes(packed: Packed) -> int:
    return sum(a.nbytes for a in packed.arrays.values())


def digits(seeds: int, quick: bool) -> Rows:
    rows: Rows = {}
    recipe, (data, held), known = (
        DIGITS.but(epochs=3 if quick else DIGITS.epochs),
        classes(False),
        classes(True),
    )
    scales: dict[str, float] = {}
    for seed in range(seeds):
        module = pretrained(seed, 3 if quick else 25, width=48, depth=3, heads=4)
        if not scales:
            scales = {name: swept(recipe, module, data, *arm) for name, arm in ARMS.items()}
        put(rows, "frozen, knows 0 to 4", known=accuracy(module, known[1]), accuracy=accuracy(module, held))
        made = {}
        for name, (bits, width) in ARMS.items():
            method = recipe.but(bits=bits, width=width, scale=scales[name])
            made[name] = trained = method.fit(module, data, seed=seed)
            put(rows, name, scale=method.scale, bytes=section_bytes(trained.packed),
                file=trained.packed.nbytes, accuracy=accuracy(trained.model, held))  # fmt: skip
        put(rows, "1 bit, h 32, loaded", **reloaded(recipe.but(width=32), module, data, held))
        floats = made["float32, h 32"].model
        put(
            rows,
            "float32, h 32, rounded afterwards",
            accuracy=rounded_afterwards(recipe, module, data, held, floats),
        )
        for name, noisy in noises(module, floats, seed):
            put(rows, name, accuracy=accuracy(noisy, held))
    return rows


def swept(recipe: BinaryAdapters, module: Any, data: Any, bits: int, width: int) -> float:
    """The best scale by a sixth of the training batches, which then learn with the others."""
    best, losses = recipe.but(bits=bits, width=width).swept(module, data[:-2], data[-2:], scales=SCALES)
    print(f"{bits} bits, h {width}: losses by scale {losses}", flush=True)
    return best.scale


def reloaded(recipe: BinaryAdapters, module: Any, data: Any, held: Any) -> dict[str, float]:
    """A loop of one's own: bytes by the formula, and how far loaded outputs are from fake-quantised ones."""
    made = recipe.attach(module, data)
    adapters = adapters_of(made)
    loss = torch.nn.functional.cross_entropy
    learn(
        adapters,
        data,
        torch.optim.AdamW(adapters.parameters(), lr=1e-2),
        2,
        lambda _, b: loss(made(b[0]), b[1]),
    )
    adapters.eval()
    packed = Packed.from_bytes(recipe.keep(made).to_bytes())
    wanted, given = outputs(made, held), outputs(recipe.load(packed, module), held)
    formula = 3 * (2 * math.ceil(48 * 32 / 8) + 16) + math.ceil(48 * 5 / 8) + 8
    return {"bytes": section_bytes(packed), "formula": formula, "far": float((wanted - given).abs().max())}


def rounded_afterwards(recipe: BinaryAdapters, module: Any, data: Any, held: Any, floats: Any) -> float:
    """The learned floats through the same tables of one bit."""
    frame = recipe.but(bits=1, width=32).attach(module, data)
    for mine, learned in zip(adapters_of(frame).matrices(), adapters_of(floats).matrices(), strict=True):
        mine.weight.data.copy_(learned.weight)
    return accuracy(recipe.load(recipe.keep(frame), module), held)


def noises(module: Any, floats: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """The float adapters with half of each matrix's spread as noise; then the frozen network's matrices."""
    import copy

    draw = torch.Generator().manual_seed(seed)

    def spoil(weight: torch.Tensor) -> None:
        with torch.no_grad():
            weight += torch.randn(weight.shape, generator=draw) * weight.std() * 0.5

    spoilt = copy.deepcopy(floats)
    for matrix in list(adapters_of(spoilt).matrices())[:-1]:  # the head is no adapter
        spoil(matrix.weight)
    yield "float32, h 32, noise on adapters", spoilt
    spoilt = copy.deepcopy(floats)
    for name, parameter in spoilt.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            spoil(parameter)
    yield "float32, h 32, noise on the base", spoilt


def style(seeds: int, quick: bool) -> Rows:
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        small = f"{folder}/small.hold"
        RoundToNearest(bits=4).encode(Model.read("smollm2"), to=small)
        net, tokenizer = base(small)
    learnt, held = parted(tokenizer, text("tinyshakespeare.txt", held_out_text() * 2), WINDOW)
    held = held[: 1 if quick else 5]
    put(rows, "packed at 4 bits, as it is", loss=held_out_loss(net, held))
    for name, (recipe, most) in STYLES.items():
        for seed in range(min(seeds, most)):
            batches = Windows(learnt, WINDOW, 1, 2 if quick else 16, seed)
            packed = recipe.fit(net, batches, seed=seed, held_out=held).packed
            loss = packed.meta["report"]["rows"]["adapted"]["loss"]
            put(rows, name, bytes=section_bytes(packed), file=packed.nbytes, loss=loss)
    if importlib.util.find_spec("peft") is not None:
        for seed in range(min(seeds, 2)):
            batches = Windows(learnt, WINDOW, 1, 2 if quick else 16, seed)
            put(rows, "peft LoRA, float16, r 1", **by_peft(net, batches, held, seed))
    return rows


def by_peft(net: Any, batches: Windows, held: Any, seed: int) -> dict[str, float]:
    """LoRA as people use it. peft knows nn.Linear: the packed base is unpacked for it."""
    import peft

    from holdall.weights.packed_linear import PackedLinear
    from holdall.weights.packed_linear import put as place

    torch.manual_seed(seed)
    dense = frozen(net)
    for path, part in list(dense.named_modules()):
        if isinstance(part, PackedLinear) and path.endswith(("q_proj", "v_proj")):
            linear = torch.nn.Linear(part.in_features, part.out_features, bias=False)
            linear.weight.data = torch.from_numpy(part.held.dense())
            place(dense, path, linear)
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(dense, config).eval()
    learners = [p for p in model.parameters() if p.requires_grad]
    stand_in = torch.nn.ParameterList(learners)
    learn(
        stand_in,
        batches,
        torch.optim.AdamW(learners, lr=1e-2, weight_decay=1e-4),
        1,
        lambda _, b: model(**b).loss,
    )
    for p in learners:
        p.data = p.data.half().float()
    return {"bytes": 2 * sum(p.numel() for p in learners), "loss": held_out_loss(model, held)}


def put(rows: Rows, name: str, **figures: float) -> None:
    rows.setdefault(name, []).append(figures)
    print(f"{name:36s}" + "  ".join(f"{k} {v:.5g}" for k, v in figures.items()), flush=True)


def told(rows: Rows) -> dict[str, dict[str, float]]:
    """Means over seeds, and the spread of accuracies and losses."""
    found: dict[str, dict[str, float]] = {}
    for name, seeds in rows.items():
        found[name] = {k: statistics.fmean(s[k] for s in seeds) for k in seeds[0]} | {"seeds": len(seeds)}
        for k in {"accuracy", "loss"} & set(seeds[0]):
            found[name][f"{k}_spread"] = statistics.pstdev(s[k] for s in seeds)
    return found


def lines(part: str, rows: dict[str, dict[str, float]]) -> dict[str, bool]:
    """What the card expects, with its bars."""
    if part == "style":
        return {
            "(2) the loss of 1 bit, h 32 is below that of float32, h 1, at the same bytes":
                rows["1 bit, h 32, mlp"]["loss"] < rows["float32, h 1, mlp"]["loss"],
        }  # fmt: skip
    right = {name: row["accuracy"] for name, row in rows.items() if "accuracy" in row}
    one, wide = right["1 bit, h 32"], right["float32, h 32"]
    afterwards = right["float32, h 32, rounded afterwards"]
    back = rows["1 bit, h 32, loaded"]
    return {
        "(1) 1 bit is within a point of float32 at the same width": one >= wide - 0.01,
        "(2) 1 bit, h 32 beats float32, h 1 by two points": one >= right["float32, h 1"] + 0.02,
        "(3) float32 rounded afterwards is worse by two points": afterwards <= one - 0.02,
        "(4) noise on adapters costs less than a point": right["float32, h 32, noise on adapters"] > wide - 0.01,
        "(4) the same noise on the base costs more than five": right["float32, h 32, noise on the base"] < wide - 0.05,
        "(5) bytes are the formula's": back["bytes"] == back["formula"],
        "(5) loaded outputs are within 1e-5": back["far"] <= 1e-5,
    }  # fmt: skip


PARTS: dict[str, Callable[[int, bool], Rows]] = {"digits": digits, "style": style}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="digits,style")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for part in asked.parts.split(","):
        started = time.process_time()
        rows = told(PARTS[part](1 if asked.quick else asked.seeds, asked.quick))
        expected = lines(part, rows)
        facts = {"cpu_seconds": time.process_time() - started, "quick": asked.quick}
        found[part] = {"rows": rows, "lines": expected, "provenance": provenance(**facts)}
        for name, row in rows.items():
            print(f"{part:8s}{name:36s}" + "  ".join(f"{k} {v:.5g}" for k, v in row.items()))
        for line, holds in expected.items():
            print(f"{part:8s}{'holds' if holds else 'FAILS'}  {line}", flush=True)
        if not asked.quick:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
