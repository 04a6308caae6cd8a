"""Products of signs beside torch's float32, on one thread, and bytes on disk.

    OMP_NUM_THREADS=1 python benchmarks/weights_binary_speed.py [--parts products,layers,storage] [--repeat 400]

products: 256 x 1152 x 256, whole numbers compared with torch's before anything is timed; beside theory's 64 and beside
what this processor's popcount can do (a loop of exclusive or, popcount and sum that stays in registers). layers: whole
layers, with their inputs packed and their outputs scaled. storage: files on disk. Best of `--repeat`, subjects in turn.
Results: results/weights_binary_speed.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import nn
from weights_binary_nets import resnet

from holdall import Packed
from holdall.report import provenance
from holdall.weights import Binary, binarize
from holdall.weights import binary_kernels as kernels
from holdall.weights.binary_file import sizes
from holdall.weights.binary_layers import BinaryConv2d, BinaryLinear
from holdall.weights.binary_operators import OPERATORS
from holdall.weights.binary_packed import freeze, packed_layer
from holdall.weights.coded_lanes import call

RESULTS = Path(__file__).parent / "results" / "weights_binary_speed.json"
M, K, N = 256, 1152, 256
CHAINS, VECTOR = 12, ir.VectorType(ir.IntType(64), 8)


@intrinsic
def _counting(typingctx: Any, rounds: Any, seed: Any) -> Any:
    """Twelve chains of sum += popcount(sum ^ seed) that never leave their registers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.Constant(VECTOR, ir.Undefined)
        for i in range(8):
            lanes = builder.insert_element(lanes, args[1], ir.IntType(32)(i))
        sums = [cgutils.alloca_once_value(builder, lanes) for _ in range(CHAINS)]
        with cgutils.for_range(builder, args[0]):
            for held in sums:
                mine = builder.load(held)
                count = call(builder, "llvm.ctpop.v8i64", VECTOR, builder.xor(mine, lanes))
                builder.store(builder.add(mine, count), held)
        total = builder.load(sums[0])
        for held in sums[1:]:
            total = builder.xor(total, builder.load(held))
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.int64(types.int64, types.int64), codegen


@njit
def counting(rounds, seed):
    return _counting(rounds, seed)


def timed(subjects: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Seconds each, best of all rounds: of many short ones some are undisturbed by neighbours on the machine."""
    best = dict.fromkeys(subjects, 1e9)
    for act in subjects.values():
        act()
    for _ in range(repeat):
        for name, act in subjects.items():
            before = time.perf_counter()
            act()
            best[name] = min(best[name], time.perf_counter() - before)
    return best


def products(repeat: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    a, w = (draw.choice(np.array([-1, 1], np.float32), shape) for shape in ((M, K), (N, K)))
    signs, weights = kernels.pack_bits(a < 0), kernels.panels(kernels.pack_bits(w < 0))
    x, y = torch.from_numpy(a), torch.from_numpy(w)
    given = kernels.products(signs, weights, K, N)
    if not np.array_equal(given, (x @ y.T).numpy().astype(np.int32)):
        raise SystemExit("products of signs are wrong: nothing is timed")
    zeros, ones = np.zeros(K, np.float32), np.ones(N, np.float32)
    rounds = 2_000
    best = timed(
        {
            "torch": lambda: nn.functional.linear(x, y),
            "packed": lambda: kernels.products(signs, weights, K, N),
            "with inputs packed": lambda: kernels.rows_out(
                kernels.pack_rows(a, zeros), weights, K, ones, ones, ones[:1]
            ),
            "popcount": lambda: counting(rounds, 3),
        },
        repeat,
    )
    work, ceiling = M * K * N, rounds * CHAINS * 512 / best["popcount"]
    return {
        "microseconds": {n: 1e6 * best[n] for n in ("torch", "packed", "with inputs packed")},
        "times torch": best["torch"] / best["packed"],
        "times torch, with inputs packed": best["torch"] / best["with inputs packed"],
        "in theory": 64,
        "products a second": {"torch": work / best["torch"], "packed": work / best["packed"]},
        "of what popcount can do": work / best["packed"] / ceiling,
        "vector popcount": bool(binding.get_host_cpu_features().get("avx512vpopcntdq")),
    }


LAYERS = {
    "conv 64, 3 x 3, 32 x 32": (lambda n: BinaryConv2d(64, 64, 3, padding=1, operator=n), (1, 64, 32, 32)),
    "conv 256, 3 x 3, 14 x 14": (
        lambda n: BinaryConv2d(256, 256, 3, padding=1, operator=n),
        (1, 256, 14, 14),
    ),
    "linear 768 to 3072, 128 tokens": (lambda n: BinaryLinear(768, 3072, operator=n), (128, 768)),
    "linear 768 to 3072, 1 token": (lambda n: BinaryLinear(768, 3072, operator=n), (1, 768)),
}


def layers(repeat: int) -> dict[str, Any]:
    found = {}
    for name, (make, shape) in LAYERS.items():
        torch.manual_seed(0)
        trained, x = make("reactnet").eval(), torch.randn(shape)
        packed = packed_layer(freeze(trained), trained)
        plain = nn.Linear(768, 3072) if len(shape) == 2 else nn.Conv2d(shape[1], shape[1], 3, padding=1)
        with torch.no_grad():
            if not torch.equal(packed(x), trained(x)):
                raise SystemExit(f"{name}: packed and trained differ; nothing is timed")
            best = timed({"torch": lambda f=plain, x=x: f(x), "packed": lambda f=packed, x=x: f(x)}, repeat)
        found[name] = {
            "torch, us": 1e6 * best["torch"],
            "packed, us": 1e6 * best["packed"],
            "times": best["torch"] / best["packed"],
        }
    return found


def storage(_repeat: int) -> dict[str, Any]:
    """Binary layers with the normalisations that they took in, float32 over what stands in the file."""
    found: dict[str, Any] = {}
    batch = (torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
    with tempfile.TemporaryDirectory() as folder:
        for width in (16, 32, 64, 128):
            module = resnet(width)
            for operator in OPERATORS:
                path = str(Path(folder) / "a.hold")
                Binary(operator=operator).pack(binarize(module, operator, example=batch), batch).save(path)
                with Packed.open(path) as packed:
                    whole, stored = sizes(packed, module)
                file = sum(4 * t.numel() for t in module.state_dict().values()) / Path(path).stat().st_size
                found.setdefault(f"width {width}", {})[operator] = whole / stored
                found.setdefault(f"width {width}, whole file", {})[operator] = file
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="products,layers,storage")
    parser.add_argument("--repeat", type=int, default=400)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"products": products, "layers": layers, "storage": storage}
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in asked.parts.split(","):
        rows = parts[part](asked.repeat)
        print(part)
        for name, row in rows.items():
            told = {n: round(v, 3) for n, v in row.items()} if isinstance(row, dict) else row
            print(f"  {name:34s}{told}", flush=True)
        found[part] = {"rows": rows, "provenance": provenance(repeat=asked.repeat)}
        RESULTS.write_text(json.dumps(found, indent=1))
    print(RESULTS)


if __name__ == "__main__":
    main()
