"""How the room measures: loss of weights, perplexity of language models, cosine of embedding models, speed, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from holdall.errors import BadInput, HoldallError
from holdall.files import open_stream
from holdall.kinds import Spend
from holdall.optional import lazy
from holdall.report import Report, provenance
from holdall.weights.model import Model
from holdall.weights.stored import absorb, raw

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

FLOORS: tuple[str, ...] = ("weights.none", "weights.random")
UNITS = {"tokens_per_cpu_second": "1/s", "kl": "nat", "kl_p99": "nat"}
_HIDDEN, _INNER, _VOCABULARY = 192, 256, 1024  # of the model that `real` cuts out of SmolLM2


def specimens() -> dict[str, Model]:
    """Plain tensors, some of them awkward."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.05

    return {
        "three": Model({"w": normal(3, 3), "b": normal(3)}),
        "one": Model({"w": normal(1, 1)}),
        "odd63": Model({"w": normal(63, 63), "v": normal(63, 1), "row": normal(1, 63)}),
        "constant": Model({"w": torch.full((40, 24), 0.25), "zero": torch.zeros(33, 70)}),
        "empty": Model({"w": torch.zeros(0, 5), "v": torch.zeros(0)}),
        "dtypes": Model({"h": normal(48, 40).half(), "b": normal(40, 48).bfloat16(), "ids": torch.arange(5)}),
        "outlier": Model(
            {"w": torch.where(torch.arange(64 * 80).reshape(64, 80) == 77, 9.0, normal(64, 80))}
        ),
    }


@cache
def _real() -> Model:
    whole = Model.read("smollm2")
    config = whole.config | {
        "hidden_size": _HIDDEN, "intermediate_size": _INNER, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 64, "vocab_size": _VOCABULARY,
    }  # fmt: skip
    state = {}
    for name, tensor in whole.state.items():
        layer = next((int(p) for p in name.split(".") if p.isdigit()), 0)
        if layer < 2:
            rows, columns = _cut(name)
            state[name] = tensor[:rows].clone() if tensor.ndim == 1 else tensor[:rows, :columns].clone()
    told = json.loads(whole.files["tokenizer.json"])
    vocabulary = {t: i for t, i in told["model"]["vocab"].items() if i < _VOCABULARY}
    pairs = [m if isinstance(m, list) else m.split(" ") for m in told["model"]["merges"]]
    told["model"]["vocab"] = vocabulary
    told["model"]["merges"] = [m for m in pairs if m[0] + m[1] in vocabulary and set(m) <= set(vocabulary)]
    told["added_tokens"] = [t for t in told["added_tokens"] if t["id"] < _VOCABULARY]
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": json.dumps(told).encode()}
    return Model(state, files, "smollm2-corner")


def real() -> Model:
    """A corner of SmolLM2: the first rows and columns of two layers' real matrices, with its own first tokens."""
    found = _real()
    return Model(dict(found.state), dict(found.files), found.name)


def _cut(name: str) -> tuple[int, int]:
    if "embed_tokens" in name:
        return _VOCABULARY, _HIDDEN
    if "k_proj" in name or "v_proj" in name:
        return 64, _HIDDEN
    if "gate_proj" in name or "up_proj" in name:
        return _INNER, _HIDDEN
    return _HIDDEN, _INNER if "down_proj" in name else _HIDDEN


def loss(x: Model, y: Model) -> float:
    """Squared error over squared weight of each tensor, weighted by its share of the numbers; 0 = exact."""
    total, numbers = 0.0, 0
    for name, tensor in x.state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        a, b = tensor.double(), y.state[name].double()
        size = float(a.square().sum())
        total += tensor.numel() * float((a - b).square().sum()) / (size if size else 1.0)
        numbers += tensor.numel()
    return total / numbers if numbers else 0.0


def same(x: Model, y: Model) -> bool:
    """Equal to the bit: tensors, their types, files."""
    if x.files != y.files or list(x.state) != list(y.state):
        return False
    return all(
        t.dtype == y.state[n].dtype and np.array_equal(raw(t), raw(y.state[n])) for n, t in x.state.items()
    )


def original_bytes(x: Model) -> int:
    return x.nbytes


def fingerprint(x: Model) -> bytes:
    total = xxhash.xxh3_128()
    absorb(total, x.state.items())
    for name, content in sorted(x.files.items()):
        total.update(name.encode() + content)
    return total.digest()


def measure(
    method: Any, budget: Spend = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Report:
    """Pack, decode and run: bytes, quality against the original, speed and memory of the packed model.

    model: as `Model.read` takes it, SmolLM2 by default. on: a text file, by default text that nothing was
    calibrated on. quick: every other window of the perplexity protocol, fewer tokens of speed.
    """
    from holdall.weights.perplexity import compare, embedding_quality, spread

    x = Model.read(model or "smollm2")
    ids = x.tokenizer().encode(_text(on))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "measured.hold")
        with method.encode(x, budget, to=path) as packed:
            size = packed.nbytes
            decoded = method.decode(packed)
        reference = x.build()
        row: dict[str, float] = {"bytes": size, "bits_per_weight": 8 * size / x.elements}
        first: dict[str, float] = {"bytes": x.nbytes, "bits_per_weight": 8 * x.nbytes / x.elements}
        if reference.get_output_embeddings() is not None:
            row |= compare(reference, decoded.build(), spread(ids, every=2 if quick else 1))
            first["perplexity"] = row["perplexity"] / row["perplexity_ratio"]
            first["perplexity_ratio"] = 1.0
            del reference, decoded
            row |= probe(path, ids[:16], 16 if quick else 64)
        else:
            row |= embedding_quality(reference, decoded.build(), spread(ids, 128, 64))
    told = provenance(method=method.to_dict(), budget=str(budget), model=x.name, on=on or "held-out default")
    return Report({x.name: first, method.full_name(): row}, baseline=x.name, units=UNITS, provenance=told)


def warm() -> None:
    """Load what belongs to Python and its packages: torch, transformers' model classes, numba and the kernels."""
    from holdall.weights.bitstack import BitStack

    tiny = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 256,
        "tie_word_embeddings": True,
    }  # fmt: skip
    model = Model({}, {"config.json": json.dumps(tiny).encode()})
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.skeleton().named_parameters():
        if not name.startswith("lm_head"):
            model.state[name] = torch.randn(parameter.shape, generator=draw)
    method = BitStack()
    module = method.open(method.encode(model, "30%"))
    with torch.inference_mode():
        out = module(input_ids=torch.arange(8)[None], use_cache=True)
        module(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=out.past_key_values)


def probe(
    path: str, prompt: list[int], tokens: int, memory: str | None = None, threads: int | None = None
) -> dict:
    """Speed and memory of the packed model in a process of its own, above what Python and its packages hold."""
    asked = json.dumps(
        {"path": path, "prompt": prompt, "tokens": tokens, "memory": memory, "threads": threads}
    )
    command = [sys.executable, "-m", "holdall.weights.probe", asked]
    sleeping = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as the command line has it
    done = subprocess.run(command, env=sleeping, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HoldallError(f"the measuring process failed: {done.stderr.strip()[-300:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _text(on: str | None) -> str:
    from holdall.weights.texts import held_out_text

    if on is None:
        return held_out_text()
    with open_stream(on) as f:
        raw = f.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise BadInput("text", on, "a UTF-8 text file") from fault
