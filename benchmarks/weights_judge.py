"""What the weights benchmark measures with: the protocol's windows, the re-gauged model, one artefact at many sizes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from holdall.dropins.hub import installed
from holdall.packed import Packed
from holdall.report import provenance
from holdall.weights import BitStack, Model
from holdall.weights.base import WeightCodec
from holdall.weights.perplexity import compare, spread
from holdall.weights.texts import held_out_text

HERE = Path(__file__).parent
TEXTS = HERE.parent.parent / "shared" / "data" / "text"
RESULTS = HERE / "results" / "weights.json"


def text(name: str, instead: str) -> str:
    path = TEXTS / name
    return path.read_text() if path.exists() else instead


class Judge:
    """Perplexity and top-1 agreement on the protocol's windows, or another text's; the float model is asked once."""

    def __init__(self, model: Model, windows: int, length: int, of: str = "wikitext2-test-raw.txt"):
        ids = model.tokenizer().encode(text(of, held_out_text()))
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


class Judges:
    """`Judge`, and the same on a novel that nothing was learned from."""

    def __init__(self, model: Model, windows: int, length: int):
        self.model, self.first, self.reference = model, Judge(model, windows, length), model.build()
        novel = text("war-and-peace.txt", held_out_text())[100_000:400_000]
        self.second = spread(model.tokenizer().encode(novel), max(1, windows // 2), length)

    def __call__(self, method: Any, packed: Packed) -> dict[str, float]:
        module = method.decode(packed).build()
        row = self.first(module, packed.nbytes, self.model.elements)
        other = compare(self.reference, module, self.second)
        return row | {"second_ratio": other["perplexity_ratio"], "second_top1": other["top1"]}


def keep(part: str, rows: dict[str, Any], out: Path, method: WeightCodec) -> None:
    found = json.loads(out.read_text()) if out.exists() else {}
    found[part] = {"rows": rows, "provenance": provenance(method=method.to_dict(), texts=TEXTS.exists())}
    out.write_text(json.dumps(found, indent=1) + "\n")
    for name, row in rows.items():
        shown = {k: v for k, v in row.items() if isinstance(v, float | int)}
        print(f"{name:36s}" + "  ".join(f"{k} {v:.5g}" for k, v in shown.items()), flush=True)


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


def llama(python: str | None, judge: Judge) -> dict[str, Any]:
    if python is None:
        print("llama.cpp: skipped (name an interpreter with --llama-python)", flush=True)
        return {}
    script = HERE / "peers" / "llama_perplexity.py"
    gguf = installed("smollm2")
    asked = json.dumps({"tokens": judge.tokens.tolist(), "float": judge.float, "gguf": gguf})
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
    rows = RESULTS.with_name("weights_rows.json")
    sizes = json.loads(rows.read_text()) if rows.exists() else {}
    for part, kind in (("sizes, shipped", "mixllm, shipped"), ("sizes, regauged", "mixllm, regauged")):
        for row in sizes.get(part, {}).get("rows", {}).values():
            lines.setdefault(kind, []).append((row["bytes"], row["perplexity_ratio"]))
    if lines:
        where = str(RESULTS.with_suffix(".png"))
        curves(lines, where, title="SmolLM2-135M: file size against perplexity", x="file (bytes)", y="perplexity ratio",
               log_y=True)  # fmt: skip
        print(f"drawn: {where}")
