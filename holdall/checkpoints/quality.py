"""How the room measures: states to try checkpoints on, compared bit for bit; what a save costs whom."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.meter import Meter
from holdall.optional import lazy
from holdall.registry import get
from holdall.report import Report, provenance

torch = lazy("torch", extra="checkpoints")

FLOORS: tuple[str, ...] = ("checkpoints.none", "checkpoints.copying")


def odd() -> dict[str, Any]:
    """One of each thing that breaks careless stores."""
    made = torch.Generator().manual_seed(7)
    w, flat = torch.randn(7, 5, generator=made), torch.arange(60.0)
    return {
        "model": {
            "w": w, "tied": w, "turned": w.t(), "every third": flat[::3], "part": flat[8:20].view(3, 4), "": w[:1],
            "half": w.half(), "brain": w.bfloat16(), "eight": w.to(torch.float8_e4m3fn), "flags": w > 0,
            "none": torch.empty(0, 3), "scalar": torch.tensor(-0.0), "broken": torch.tensor([float("nan"), -1e-45]),
            "long": torch.tensor([2**62, -1]), "permuted": torch.randn(2, 3, 4, generator=made).permute(2, 0, 1),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"lr": 1e-3, "fused": None}]},
        "step": 12, "text": "ü", "loss": 0.1, "empty": [], "list": [1, None, [True, w[0]]],
    }  # fmt: skip


def real(width: int = 64, steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """A small network, with statistics of its batches, and AdamW after some steps: what a run saves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            torch.nn.Linear(width, 4 * width),
            torch.nn.BatchNorm1d(4 * width),
            torch.nn.Linear(4 * width, width),
        ]
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, width)).square().mean().backward()
            optimizer.step()
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }


def specimens() -> dict[str, Any]:
    """Odd states."""
    one = torch.ones(1)
    return {
        "everything at once": odd(),
        "a run": real(),
        "no tensors": {"step": 3, "betas": (0.9, 0.999), "none": None, "far": float("inf"), 5: {"on": True}},
        "nothing": {},
        "one number": {"w": one},
        "one of a batch": {"w": torch.arange(1e4)[5]},
        "odd sizes": {f"w{n}": torch.arange(n, dtype=torch.int16) for n in (1, 3, 63, 129, 4097)},
        "deep": {"a": {"b": {"c": [{"d": [one, {"e": one + 1}]}]}}},
        "names that look like places": {
            "a.b": one,
            "a": {"c": one + 1},
            "../x": one + 2,
            "é": one + 3,
            "": one,
        },
        "bits of a double": {
            "w": torch.randn(9, dtype=torch.float64),
            "c": torch.randn(3, dtype=torch.complex64),
        },
    }


def run(width: int = 24) -> tuple[Any, Any, Callable[[], Any]]:
    """A module whose statistics change in forward, its optimizer, and what gives the loss of the next batch."""
    made = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)
        model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, lambda: model(torch.randn(8, width, generator=made)).square().mean()


def tensors(state: Any) -> list[Any]:
    """All of them, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [t for value in inner for t in tensors(value)]


def copied(state: Any) -> Any:
    """The same state in memory of its own; what was shared is not."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {k: copied(v) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([copied(v) for v in state])
    return state


def same(a: Any, b: Any) -> bool:
    """Types, shapes, keys in order, and every bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _raw(a) == _raw(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def _raw(t: Any) -> bytes:
    return bytes(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def original_bytes(state: Any) -> int:
    """Of all tensors, each name once."""
    if isinstance(state, torch.Tensor):
        return int(state.nbytes)
    if isinstance(state, dict):
        return sum(map(original_bytes, state.values()))
    return sum(map(original_bytes, state)) if isinstance(state, list | tuple) else 0


def spoiled(state: Any) -> None:
    """Change every tensor in place, as a step would."""
    if isinstance(state, torch.Tensor):
        with torch.no_grad():
            state.view(torch.uint8).bitwise_not_() if state.is_contiguous() and state.dim() else state.zero_()
    elif isinstance(state, dict | list | tuple):
        for inner in state.values() if isinstance(state, dict) else state:
            spoiled(inner)


def measure(
    method: Any, budget: Spend = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Report:
    """What a save holds the caller up for, when it is durable, memory beside the state, and a load in place; beside
    the floors. budget: bytes of memory. model: its weights with AdamW's states; on: a file of torch.save."""
    if model is not None and on is not None:
        raise BadInput("--on", on, "either a model or a file")
    state, rows, rounds = _state(model, on, quick), {}, 1 if quick else 3
    for name in FLOORS:
        rows[name] = figures(get(name)(), None, state, rounds)
    rows[method.full_name()] = figures(method, budget, state, rounds)
    told = provenance(method=method.to_dict(), budget=str(budget), of=model or on or "drawn")
    return Report(rows, FLOORS[0], told)


def figures(method: Any, budget: Spend, state: Any, rounds: int) -> dict[str, float]:
    """Of the best of some rounds, after one that makes threads and memory ready."""
    blocked, durable, extra, loads = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="holdall.measure.") as folder:
        with method.open(folder, budget) as kept:
            for step in range(rounds + 1):
                with Meter() as m:
                    began = time.perf_counter()
                    receipt = kept.save(step, state)
                    kept.ready()
                    nbytes = receipt.wait()
                    took = time.perf_counter() - began
                extra.append(m.peak_bytes)
                blocked.append(receipt.blocked)
                durable.append(took)
            on_disk = max(nbytes, 0)
        with method.open(folder, budget) as kept:
            for _ in range(rounds):
                began = time.perf_counter()
                kept.load(like=state)
                loads.append(time.perf_counter() - began)
    return {
        "bytes": on_disk,
        "state_bytes": original_bytes(state),
        "blocked_seconds": min(blocked[1:]),
        "durable_seconds": min(durable[1:]),
        "peak_bytes": max(extra),
        "load_seconds": min(loads),
    }


def _state(model: str | None, on: str | None, quick: bool) -> Any:
    if on is not None:
        from holdall.checkpoints.exchange import read_torch

        return read_torch(on)
    if model is not None:
        from holdall.weights import Model

        weights = {n: t.float() for n, t in Model.read(model).state.items()}
    else:
        count = 2 if quick else 24
        weights = {f"w{i}": torch.randn(512, 1024) for i in range(count)}
    moments = {n: {"exp_avg": t * 0.1, "exp_avg_sq": t.square()} for n, t in weights.items()}
    return {"model": weights, "optimizer": {"state": moments}, "step": 1}
