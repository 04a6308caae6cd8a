"""ByteCheckpoint beside what saves training today; layouts, plans, reads and kills, as its card has them.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints_bytecheckpoint.py [--parts save,load,layouts,plans,reads,kills]
        [--layers 6] [--rounds 5] [--folder DIR]

The state: SmolLM2-135M (its first `--layers` layers; 30 are all of it) in float32 with both moments of Adam. save and
load: all ways in turn, in one process, the median of the rounds (blocked, total) and the highest memory of any;
`total` ends when the bytes are durable: what does not sync by itself is synced after it. kills: kill -9 at 100 random
moments of saves that overwrite one step. Results are merged into results/checkpoints_bytecheckpoint.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from keeping import keeper

from holdall.checkpoints import bytecheckpoint_plan
from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
from holdall.checkpoints.bytecheckpoint_hall import Hall
from holdall.checkpoints.bytecheckpoint_parts import Piece
from holdall.checkpoints.bytecheckpoint_state import take
from holdall.checkpoints.layouts import Layout
from holdall.dropins.dcp import Reader, Writer
from holdall.meter import Meter

RESULTS = Path(__file__).parent / "results" / "checkpoints_bytecheckpoint.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
PAIRS = [
    ((1, 1, 1, 0), (1, 1, 4, 3)), ((1, 1, 4, 0), (1, 1, 1, 0)), ((1, 1, 4, 1), (1, 1, 2, 1)),
    ((1, 1, 3, 3), (1, 1, 4, 3)), ((1, 1, 4, 3), (1, 1, 3, 0)), ((2, 1, 1, 0), (3, 1, 1, 0)),
    ((2, 1, 2, 3), (1, 1, 4, 2)), ((1, 2, 2, 2), (2, 2, 1, 0)), ((1, 2, 3, 3), (1, 3, 1, 0)),
    ((2, 2, 2, 3), (3, 1, 2, 1)), ((3, 2, 1, 0), (2, 2, 2, 3)), ((1, 3, 1, 0), (2, 1, 3, 1)),
]  # fmt: skip


keep = keeper(RESULTS, 34)


def training(layers: int) -> dict[str, Any]:
    """Real weights, and moments of the same shapes."""
    from holdall.weights import Model

    weights = Model.read("smollm2").state
    rng = torch.Generator().manual_seed(0)
    names = [
        n for n in weights if not (".layers." in n and int(n.split(".layers.")[1].split(".")[0]) >= layers)
    ]
    model = {n: weights[n].float().clone() for n in names}
    moments = {n: {m: torch.randn(t.shape, generator=rng) for m in MOMENTS} for n, t in model.items()}
    return {"model": model, "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3}]}, "step": 1}


def flat(state: Any) -> dict[str, torch.Tensor]:
    moments = {f"optimizer.{n}.{m}": t for n, s in state["optimizer"]["state"].items() for m, t in s.items()}
    return {**{f"model.{n}": t for n, t in state["model"].items()}, **moments}


def count(state: Any) -> int:
    return sum(t.numel() * t.element_size() for t in flat(state).values())


def synced(folder: Path) -> None:
    """Make what was written there durable."""
    for file in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def raw(state: Any, folder: Path) -> None:
    with (folder / "raw").open("wb", buffering=0) as f:
        for t in flat(state).values():
            data = t.reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(data), 1 << 20):
                f.write(data[start : start + (1 << 20)])
        os.fsync(f.fileno())


Way = Callable[
    [Any, Path], "Callable[[], Any] | None"
]  # returns when training may go on; then what waits for the rest


def ways() -> dict[str, Way]:
    held: dict[str, Any] = {}

    def ours(name: str, memory: str | None) -> Way:
        def save(state: Any, folder: Path) -> Callable[[], Any]:
            if name not in held:
                held[name] = ByteCheckpoint(keep=1).open(str(folder), memory)
            held["step"] = held.get("step", 0) + 1
            return held[name].save(held["step"], state).wait

        return save

    def later(state: Any, folder: Path) -> Callable[[], Any]:
        return dcp.async_save(state, checkpoint_id=folder / "a").result

    return {
        "raw write + fsync, 1 MiB": lambda s, f: raw(s, f),
        "torch.save": lambda s, f: torch.save(s, f / "a.pt"),
        "safetensors save_file": lambda s, f: safetensors.torch.save_file(flat(s), f / "a.safetensors"),
        "dcp.save": lambda s, f: dcp.save(s, checkpoint_id=f / "a"),
        "dcp.save, our writer": lambda s, f: dcp.save(s, storage_writer=Writer(str(f))),
        "dcp.async_save": later,
        "bytecheckpoint": ours("whole", None),
        "bytecheckpoint, 64 MB": ours("window", "64MB"),
    }


def copied(state: Any, room: torch.Tensor) -> float:
    """Seconds that one copy of the state into memory takes that was touched before."""
    began, at = time.perf_counter(), 0
    for t in flat(state).values():
        data = t.reshape(-1).view(torch.uint8).numpy()
        room.numpy()[at : at + len(data)] = data
        at += len(data)
    return time.perf_counter() - began


def save(args: argparse.Namespace, state: Any, folder: Path) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    most: dict[str, int] = {}
    room, copies, them = torch.zeros(count(state), dtype=torch.uint8), [], ways()
    for turn in range(args.rounds + 1):  # the first warms up: rings and pools are made
        copies.append(copied(state, room))
        for name, way in them.items():
            place = folder / name.replace(" ", "_").replace(",", "")
            place.mkdir(exist_ok=True)
            with Meter() as m:
                began = time.perf_counter()
                rest = way(state, place)
                blocked = time.perf_counter() - began
                if callable(rest):
                    rest()
                if "bytecheckpoint" not in name and "our" not in name:
                    synced(place)
                total = time.perf_counter() - began
            most[name] = max(most.get(name, 0), m.peak_bytes)  # of the first turn, too: rings stay allocated
            if turn:
                rows.setdefault(name, []).append((blocked, total))
    copy = statistics.median(copies[1:])
    keep("save", "one copy in memory", {"blocked_s": copy, "bytes": count(state)})
    medians = {n: [statistics.median(r[i] for r in told) for i in (0, 1)] for n, told in rows.items()}
    rate = medians["raw write + fsync, 1 MiB"][1]
    for name, (blocked, total) in medians.items():
        row = {
            "blocked_s": blocked, "total_s": total, "extra_mb": most[name] / 1e6,
            "blocked_of_copy": blocked / copy, "blocked_of_torch_save": blocked / medians["torch.save"][0],
            "blocked_of_dcp_async": blocked / medians["dcp.async_save"][0], "total_of_raw": total / rate,
        }  # fmt: skip
        keep("save", name, row)


def load(args: argparse.Namespace, state: Any, folder: Path) -> None:
    """Warm: all files are in the page cache. Tensors are read through once, as training does."""
    torch.save(state, folder / "a.pt")
    safetensors.torch.save_file(flat(state), folder / "a.safetensors")
    dcp.save(state, checkpoint_id=folder / "dcp")
    with ByteCheckpoint().open(str(folder / "ours")) as kept:
        kept.save(1, state, wait=True)
    like = training(args.layers)

    def ours(into: Any, **named: Any) -> Any:
        with ByteCheckpoint(**named).open(str(folder / "ours")) as kept:
            return kept.load(like=into)

    them: dict[str, Callable[[], Any]] = {
        "torch.load, weights_only": lambda: torch.load(folder / "a.pt", weights_only=True),
        "torch.load, mmap": lambda: torch.load(folder / "a.pt", weights_only=True, mmap=True),
        "safetensors load_file": lambda: safetensors.torch.load_file(folder / "a.safetensors"),
        "dcp.load, in place": lambda: dcp.load(like, checkpoint_id=folder / "dcp"),
        "dcp.load, our reader, in place": lambda: dcp.load(like, storage_reader=Reader(str(folder / "ours"))),
        "bytecheckpoint": lambda: ours(None),
        "bytecheckpoint, in place": lambda: ours(like),
        "bytecheckpoint, in place, 1 thread": lambda: ours(like, threads=1),
    }
    took: dict[str, list[float]] = {name: [] for name in them}
    for _ in range(args.rounds):
        for name, act in them.items():
            began = time.perf_counter()
            got = act()
            for t in flat(got).values() if isinstance(got, dict) and "model" in got else (got or {}).values():
                if isinstance(t, torch.Tensor):
                    t.sum()
            took[name].append(time.perf_counter() - began)
            del got
    base = statistics.median(took["safetensors load_file"])
    for name, seconds in took.items():
        keep(
            "load",
            name,
            {"s": statistics.median(seconds), "of_safetensors": statistics.median(seconds) / base},
        )


def split(full: Any, layout: Layout, rank: int) -> Any:
    shapes = {n: tuple(t.shape) for n, t in full["model"].items()}
    model = {h.name: Piece.of(h, full["model"][h.name]) for h in layout.held(rank, shapes)}
    moments = {
        h.name: {m: Piece.of(h, full["optimizer"]["state"][h.name][m]) for m in MOMENTS}
        for h in layout.held(rank, shapes, "optim")
    }
    return {"model": model, "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3}]}, "step": 1}


def layouts(args: argparse.Namespace, state: Any, folder: Path) -> None:
    """Saved under one, loaded under another by threads as ranks; equal bit for bit or not."""
    for old, new in ((Layout(*a), Layout(*b)) for a, b in PAIRS):
        place = folder / "layouts"

        def write(ranks: Any, old: Layout = old, place: Path = place) -> list[Any]:
            with ByteCheckpoint().open(str(place), ranks=ranks) as kept:
                kept.save(1, split(state, old, ranks.rank)).wait()
                return kept.report().ranks

        def read(ranks: Any, new: Layout = new, place: Path = place) -> tuple[bool, int]:
            with ByteCheckpoint().open(str(place), ranks=ranks) as kept:
                wanted, like = split(state, new, ranks.rank), split(state, new, ranks.rank)
                for piece in [
                    *like["model"].values(),
                    *(p for s in like["optimizer"]["state"].values() for p in s.values()),
                ]:
                    piece.data.fill_(1)
                kept.load(like=like)
                pairs = zip(flat(wanted).values(), flat(like).values(), strict=True)
                return all(torch.equal(a.data, b.data) for a, b in pairs), int(kept.traffic()["read_bytes"])

        ranks = Hall(old.world).run(write)[0]
        loads = [r.get("write", {"bytes": 0})["bytes"] for r in ranks]
        read_ = Hall(new.world).run(read)
        row = {
            "equal": int(all(e for e, _ in read_)), "written_of_state": sum(loads) / count(state),
            "max_over_mean": max(loads) * len(loads) / sum(loads),
            "read_of_state": sum(n for _, n in read_) / count(state),
        }  # fmt: skip
        keep("layouts", f"tp pp dp zero {'-'.join(map(str, (old.tp, old.pp, old.dp, old.zero)))} -> "
             f"{'-'.join(map(str, (new.tp, new.pp, new.dp, new.zero)))}", row)  # fmt: skip
        shutil.rmtree(place)


def plans(args: argparse.Namespace, state: Any, folder: Path) -> None:
    """Planning of a first and a second save, over four ranks that hold the same, and over one."""
    for dp, zero in ((1, 0), (4, 0), (4, 3), (16, 3)):

        def work(ranks: Any, dp: int = dp, zero: int = zero) -> list[float]:
            layout = Layout(dp=dp, zero=zero)
            planner = bytecheckpoint_plan.Planner(ranks, 8 << 20, 4 << 30, 4)
            taken = take(split(state, layout, ranks.rank), ranks.rank)
            seconds = []
            for _ in range(6):
                began = time.perf_counter()
                planner.share(taken, 1)
                seconds.append(time.perf_counter() - began)
            return [seconds[0], statistics.median(seconds[1:])]

        first, second = (max(s) for s in zip(*Hall(dp).run(work), strict=True))
        keep("plans", f"dp {dp} zero {zero}", {"first_s": first, "again_s": second, "ratio": second / first})


def reads(args: argparse.Namespace, state: Any, folder: Path) -> None:
    """Four data ranks want all of it."""

    def write(ranks: Any) -> None:
        with ByteCheckpoint().open(str(folder / "reads"), ranks=ranks) as kept:
            kept.save(1, split(state, Layout(dp=4), ranks.rank)).wait()

    Hall(4).run(write)
    for once in (True, False):

        def read(ranks: Any, once: bool = once) -> int:
            with ByteCheckpoint(once=once).open(str(folder / "reads"), ranks=ranks) as kept:
                kept.load(like=split(state, Layout(dp=4), ranks.rank))
                return int(kept.traffic()["read_bytes"])

        began = time.perf_counter()
        total = sum(Hall(4).run(read))
        seconds = time.perf_counter() - began
        name = "each byte by one rank" if once else "each rank all of its own"
        keep(
            "reads", f"dp 4, {name}", {"read_of_state": total / count(state), "s_threads_page_cache": seconds}
        )


def kills(args: argparse.Namespace, state: Any, folder: Path) -> None:
    """A process that overwrites one step over and over is killed after a random time, 100 times."""
    place, rng, found = folder / "kills", random.Random(0), {"old_or_new": 0, "other": 0, "saves": 0}
    small = {"model": {f"w{i}": torch.zeros(400, 500) for i in range(40)}}  # 32 MB

    def fill(value: float) -> Any:
        for t in small["model"].values():
            t.fill_(value)
        return small

    with ByteCheckpoint().open(str(place)) as kept:
        kept.save(1, fill(0.0), wait=True)
    for _ in range(100):
        with ByteCheckpoint().open(str(place)) as kept:
            first = kept.load()["model"]["w0"][0, 0].item()
        pid = os.fork()
        if not pid:
            with ByteCheckpoint().open(str(place)) as kept:
                value = first
                while True:
                    value += 1
                    kept.save(1, fill(value), wait=True)
        time.sleep(rng.uniform(0.02, 0.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with ByteCheckpoint().open(str(place)) as kept:
            got = kept.load()["model"]
            value = got["w0"][0, 0].item()
            whole = all((t == value).all() for t in got.values()) and value >= first and kept.steps() == [1]
            found["old_or_new" if whole else "other"] += 1
            found["saves"] += int(value - first)
            kept.save(1, fill(value), wait=True)
        left = len(list(place.rglob("*.tmp"))) + len(list(place.glob("*.data"))) - 1
        found["left_over_after_next_save"] = found.get("left_over_after_next_save", 0) + left
    keep("kills", "kill -9 at 100 random moments", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="save,load,layouts,plans,reads,kills")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; by default a temporary one")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    state = training(args.layers)
    print(f"state of {count(state) / 1e6:.0f} MB, {len(flat(state))} tensors")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if any(p in args.parts for p in ("save", "load")):
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1
            )
        for part in args.parts.split(","):
            place = Path(folder, part)
            place.mkdir()
            globals()[part](args, state, place)
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
