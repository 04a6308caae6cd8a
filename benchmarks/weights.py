"""Weights side by side: total file bytes against perplexity on SmolLM2, one run, the protocol of the room.

    python benchmarks/weights.py [--parts frontier,regauged,ablations,sort,minilm,speed] [--windows 16]
        [--length 1024] [--cache FOLDER] [--llama-python /path/to/python]

Protocol: 16 windows of 1,024 tokens of WikiText-2 test at equally spaced starts (fewer with --windows), calibration on
WikiText-2 valid only (without ../shared: Python's language reference, two halves). "regauged" is the same function
moved off the 4-bit grid on which the shipped weights sit. Each finished part is merged into results/weights.json.
--cache keeps packed files between runs. --llama-python names an interpreter that has llama-cpp-python; llama.cpp's
K-quants then run on the same token ids (see peers/llama_perplexity.py), and are skipped with a line otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdall.packed import Packed
from holdall.report import provenance
from holdall.weights import BitStack, Model, Random, RoundToNearest
from holdall.weights.iavd import factors
from holdall.weights.perplexity import embedding_quality, spread
from holdall.weights.quality import probe
from holdall.weights.texts import calibration_text, held_out_text

HERE = Path(__file__).parent
TEXTS = HERE.parent.parent / "shared" / "data" / "text"
RESULTS = HERE / "results" / "weights.json"
TOP = "72MB"
SIZES = [f"{mb}MB" for mb in (36, 38, 40, 42, 44, 45, 46, 48, 50, 52, 54, 56, 58, 60, 62, 64, 66, 68, 70, 72)]
SMALL = BitStack(
    windows=4, slope_windows=2
)  # the ablations' common setting: cheap, and equal for all of them


def text(name: str, instead: str) -> str:
    path = TEXTS / name
    return path.read_text() if path.exists() else instead


class Judge:
    """Perplexity and top-1 agreement on the protocol's windows; the float model is asked once."""

    def __init__(self, model: Model, windows: int, length: int):
        ids = model.tokenizer().encode(text("wikitext2-test-raw.txt", held_out_text()))
        self.tokens = spread(ids, 16, 1024, every=max(1, 16 // windows))[:windows, :length]
        self.float, self.top = self._ask(model.build())

    def _ask(self, module: Any) -> tuple[float, torch.Tensor]:
        found, tops = [], []
        with torch.inference_mode():
            for ids in self.tokens:
                logits = module(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
                found.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
                tops.append(logits.argmax(-1))
        return float(torch.cat(found).mean().exp()), torch.cat(tops)

    def __call__(self, module: Any, size: int, elements: int) -> dict[str, float]:
        perplexity, top = self._ask(module)
        return {
            "bytes": size, "bits_per_weight": 8 * size / elements, "perplexity": perplexity,
            "perplexity_ratio": perplexity / self.float, "top1": float((top == self.top).float().mean()),
        }  # fmt: skip


def regauge(model: Model, seed: int = 0) -> Model:
    """The same function with channels rescaled by exp(0.1 N(0, 1)): norms and their readers, v and o, up and down."""
    draw = torch.Generator().manual_seed(seed)
    state = dict(model.state)
    heads, kv = model.config["num_attention_heads"], model.config["num_key_value_heads"]

    def factor(n: int) -> torch.Tensor:
        return torch.exp(0.1 * torch.randn(n, generator=draw))

    for i in range(model.config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            f = factor(len(state[f"{at}{norm}.weight"]))
            state[f"{at}{norm}.weight"] = state[f"{at}{norm}.weight"] * f
            for reader in readers:
                state[f"{at}{reader}.weight"] = state[f"{at}{reader}.weight"] / f
        v, o = f"{at}self_attn.v_proj.weight", f"{at}self_attn.o_proj.weight"
        f = factor(len(state[v]))
        wide = f.reshape(kv, -1).repeat_interleave(heads // kv, 0).reshape(-1)
        state[v], state[o] = state[v] * f[:, None], state[o] / wide
        up, down = f"{at}mlp.up_proj.weight", f"{at}mlp.down_proj.weight"
        f = factor(len(state[up]))
        state[up], state[down] = state[up] * f[:, None], state[down] / f
    return Model(state, model.files, "smollm2-regauged", model.calibration)


def packed(method: Any, model: Model, budget: str | None, cache: Path) -> Packed:
    """Encoded, or found in the cache under the same recipe."""
    usual = type(method)().to_dict()
    knobs = "".join(f"-{k}{v}" for k, v in method.to_dict().items() if v != usual[k])
    path = cache / f"{model.name}-{method.name}{knobs}-{budget}.hold"
    if not path.exists():
        started, cpu = time.time(), time.process_time()
        method.encode(model, budget, to=str(path)).close()
        wall, cpu = time.time() - started, time.process_time() - cpu
        print(f"  packed {path.name}: {wall:.0f} s, {cpu:.0f} s of CPU", flush=True)
    return Packed.open(str(path))


def served(file: Packed, model: Model, sizes: list[str]) -> Iterator[tuple[str, Any, Any, int]]:
    """One artefact at many sizes: (size, module, stack, bytes read for this change)."""
    shell, stack = BitStack()._open(file)
    stack.change(sizes[0])
    state = {n: torch.zeros_like(t) for n, t in model.state.items()} | shell.state
    stack.fill(state)
    module = Model(state, model.files).build()
    for size in sizes:
        read = stack.change(size)
        stack.fill(state)
        yield size, module, stack, read


def frontier(model: Model, judge: Judge, cache: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "float32": {"bytes": model.nbytes, "perplexity": judge.float, "perplexity_ratio": 1.0}
    }
    with packed(BitStack(), model, TOP, cache) as file:
        for size, module, stack, read in served(file, model, SIZES):
            rows[f"bitstack {size}"] = judge(module, stack.nbytes, model.elements) | {"read_bytes": read}
            show(f"bitstack {size}", rows)
    for bits in (2, 3, 4, 8):
        rows[f"rtn {bits} bit"] = decoded(RoundToNearest(bits=bits), model, None, judge, cache)
        show(f"rtn {bits} bit", rows)
    rows["random 60MB"] = decoded(Random(), model, "60MB", judge, cache)
    show("random 60MB", rows)
    return rows


def decoded(method: Any, model: Model, budget: str | None, judge: Judge, cache: Path) -> dict[str, float]:
    with packed(method, model, budget, cache) as file:
        return judge(method.decode(file).build(), file.nbytes, model.elements)


def show(name: str, rows: dict[str, Any]) -> None:
    print(f"{name:34s}" + "  ".join(f"{k} {v:.6g}" for k, v in rows[name].items()), flush=True)


def ablations(model: Model, judge: Judge, cache: Path) -> dict[str, Any]:
    """Each without one part, at the same bytes and with the same small calibration."""
    budget, rows = "48MB", {}
    paper = {"feedback": 0.0, "refit": False, "stretch": 1.0, "aim": 1}
    for name, knobs in {
        "all parts": {}, "aim 1": {"aim": 1}, "the paper's blocks": paper,
        "the paper's, no scaling": paper | {"scaling": False}, "the paper's, rank 16": paper | {"rank": 16},
    }.items():  # fmt: skip
        rows[name] = decoded(SMALL.but(**knobs), model, budget, judge, cache)
        show(name, rows)
    rows["plain SVD of W, equal bytes"] = plain(model, judge, budget)
    show("plain SVD of W, equal bytes", rows)
    return rows


def plain(model: Model, judge: Judge, budget: str) -> dict[str, float]:
    """No signs: a low-rank W in half precision; the embeddings are left whole, which flatters it."""
    state, linears = dict(model.state), model.linears()
    total = sum(state[n].numel() for n in linears)
    for name in linears:
        m, n = state[name].shape
        rank = max(1, int(2.5 * m * n / 8) // (2 * (m + n)))
        a, b = factors(state[name], rank)
        state[name] = a @ b
    return judge(Model(state, model.files).build(), int(2.5 * total / 8), total)


def sort(model: Model, judge: Judge, cache: Path) -> dict[str, Any]:
    """Three orders within the level from two blocks to three, at a quarter, half and three quarters of it."""
    rows: dict[str, Any] = {}
    with packed(BitStack(), model, TOP, cache) as file:
        _, _, stack, _ = next(served(file, model, [TOP]))
    base = 2
    linears = [i for i, part in enumerate(stack.parts) if not part.piece.table]
    order = stack.layout.stack
    gain = [i for at, i in enumerate(order) if not stack.parts[i].piece.table and order[:at].count(i) == base]
    state = {n: t.clone() for n, t in model.state.items()}
    module = Model(state, model.files).build()

    def put(i: int, levels: int) -> None:
        part, piece = stack.parts[i], stack.parts[i].piece
        whole = (part.words, part.a, part.b)
        part.words, part.a, part.b = (x[:levels] for x in whole)
        part.dense(state[stack.layout.tensors[piece.tensor][0]][piece.start : piece.stop].numpy())
        part.words, part.a, part.b = whole

    for i in linears:
        put(i, base)
    from holdall.weights.perplexity import mean_loss
    from holdall.weights.scaling import windows

    tokens = windows(model, 4, 256, skip=256)
    tried = {}
    started = time.process_time()
    for i in linears:
        put(i, base + 1)
        tried[i] = mean_loss(module, tokens)
        put(i, base)
    rows["perplexity sort, one level"] = {"cpu_seconds": time.process_time() - started}
    sorts = {"gain": gain, "perplexity": sorted(linears, key=lambda i: tried[i]), "layer order": linears}
    for name, order in sorts.items():
        loaded = 0
        for share in (0.25, 0.5, 0.75):
            goal = share * sum(stack.parts[i].piece.block_bytes for i in linears)
            size = 0
            for i in order:
                if size + stack.parts[i].piece.block_bytes > goal:
                    break
                size += stack.parts[i].piece.block_bytes
                put(i, base + 1)
                loaded += 1
            rows[f"{name}, {share:.0%} of the level"] = judge(module, size, model.elements)
            show(f"{name}, {share:.0%} of the level", rows)
        for i in order[:]:
            put(i, base)
    return rows


def minilm(_model: Model, _judge: Judge, cache: Path) -> dict[str, Any]:
    """Float originals: cosine of sentence embeddings to the original's, and neighbours kept, at 2 to 3.5 bits."""
    x = Model.read("minilm")
    x.calibration = text("wikitext2-valid.txt", calibration_text())
    original, rows = x.build(), {}
    tokens = spread(x.tokenizer().encode(text("wikitext2-test-raw.txt", held_out_text())[:400_000]), 256, 64)
    for bits in ("2bit", "2.5bit", "3bit", "3.5bit"):
        for method in (BitStack(), RoundToNearest(), Random()):
            try:
                with packed(method, x, bits, cache) as file:
                    quality = embedding_quality(original, method.decode(file).build(), tokens)
                    rows[f"{method.name} {bits}"] = {"bytes": file.nbytes, **quality}
                    show(f"{method.name} {bits}", rows)
            except Exception as fault:  # noqa: BLE001 (a budget that a rival cannot hold is a row, not an end)
                print(f"{method.name} {bits}: {fault}", flush=True)
    return rows


def speed(model: Model, _judge: Judge, cache: Path) -> dict[str, Any]:
    """Decode on one thread, memory above the interpreter's; the share of 16 GB/s that its packed bytes a token are."""
    rows: dict[str, Any] = {}
    file = packed(BitStack(), model, TOP, cache)
    path = file.arrays.reader.name  # type: ignore[attr-defined]
    prompt = model.tokenizer().encode("The history of the city begins with")
    for size in ("45MB", "60MB", TOP):
        row = probe(path, prompt, 32, memory=size, threads=1)
        row["peak_per_packed_byte"] = row["peak_bytes"] / row["read_bytes"]
        row["share_of_bandwidth"] = row["tokens_per_cpu_second"] * row["read_bytes"] / 16e9
        rows[f"bitstack {size}"] = row
        show(f"bitstack {size}", rows)
    module, ids = model.build(), torch.tensor([prompt])
    with torch.inference_mode():
        out = module(input_ids=ids, use_cache=True)
        cpu = time.process_time()
        for _ in range(16):
            out = module(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
    rows["transformers float32"] = {"tokens_per_cpu_second": 16 / (time.process_time() - cpu)}
    show("transformers float32", rows)
    return rows


def llama(python: str | None, judge: Judge) -> dict[str, Any]:
    if python is None:
        print("llama.cpp: skipped (name an interpreter with --llama-python)", flush=True)
        return {}
    script = HERE / "peers" / "llama_perplexity.py"
    asked = json.dumps({"tokens": judge.tokens.tolist(), "float": judge.float})
    done = subprocess.run([python, str(script)], input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"llama.cpp: skipped ({done.stderr.strip()[-200:]})", flush=True)
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def picture(found: dict[str, Any]) -> None:
    from holdall.picture import curves

    lines: dict[str, Any] = {}
    for part in ("frontier", "regauged", "llama.cpp"):
        for name, row in found.get(part, {}).get("rows", {}).items():
            kind = (
                "llama.cpp"
                if part == "llama.cpp"
                else f"{name.split()[0]}, {part.replace('frontier', 'shipped')}"
            )
            if row.get("perplexity_ratio", 99) < 30 and "float" not in name:
                lines.setdefault(kind, []).append((row["bytes"], row["perplexity_ratio"]))
    if lines:
        where = str(RESULTS.with_suffix(".png"))
        curves(lines, where, title="SmolLM2-135M: file size against perplexity", x="file (bytes)", y="perplexity ratio",
               log_y=True)  # fmt: skip
        print(f"drawn: {where}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="frontier,regauged,ablations,sort,minilm,speed")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--cache")
    parser.add_argument("--llama-python")
    asked = parser.parse_args()
    model = Model.read("smollm2")
    model.calibration = text("wikitext2-valid.txt", calibration_text())
    cache = Path(asked.cache or tempfile.mkdtemp())
    cache.mkdir(exist_ok=True)
    work: dict[str, Callable[..., dict[str, Any]]] = {
        "frontier": frontier, "ablations": ablations, "sort": sort, "minilm": minilm, "speed": speed,
    }  # fmt: skip
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    judge = Judge(model, asked.windows, asked.length)
    for part in asked.parts.split(","):
        print(f"{part}:", flush=True)
        rows = (
            frontier(regauge(model), judge, cache) if part == "regauged" else work[part](model, judge, cache)
        )
        told = {
            "windows": list(judge.tokens.shape),
            "texts": "wikitext2" if TEXTS.exists() else "python reference",
        }
        found[part] = {"rows": rows, "provenance": provenance(**told)}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1))
    if rows := llama(asked.llama_python, judge):
        found["llama.cpp"] = {"rows": rows, "provenance": provenance(windows=list(judge.tokens.shape))}
        RESULTS.write_text(json.dumps(found, indent=1))
    picture(found)
    print(f"{np.sum([len(p['rows']) for p in found.values()])} rows: {RESULTS}")


if __name__ == "__main__":
    main()
