"""DataStates beside what saves training today: what a step is held up for, when it is durable, memory, loads.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints.py [--parts save,train,load] [--rounds 5] [--folder DIR]

The state: a Llama of 41.9 million parameters with tied embeddings, and AdamW's states after a step (503 MB). All ways
in turn, in one process; medians of the rounds. save: nothing else goes on, and `ready` is asked for at once, as if the
next update came right after the save. train: a save, forward and backward on text, `ready`, the update; `blocked` is
what the loop stood still for, `step` what forward and backward took beside those without a save. durable ends when the
bytes are on the disk; what does not sync by itself is synced after it. Memory is the highest of any save, the child of
a fork included. load: page cache warm and cold; tensors are read through. Merged into results/checkpoints.json.
"""

from __future__ import annotations

import argparse
import logging
import shutil
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
from checkpoints_rows import keep, synced
from checkpoints_ways import KEEPERS, Children, Job, flat, ways

from holdall.checkpoints.datastates import DataStates
from holdall.meter import Meter

IDLE = (
    "raw write + fsync, 1 MiB",
    "safetensors save_file",
    "dcp.save",
)  # compared while nothing else goes on


def copied(state: Any, room: torch.Tensor) -> float:
    """Seconds that one copy of the state takes, into memory that was touched before."""
    began, at = time.perf_counter(), 0
    for t in flat(state).values():
        data = t.reshape(-1).view(torch.uint8).numpy()
        room.numpy()[at : at + len(data)] = data
        at += len(data)
    return time.perf_counter() - began


def _turns(args: argparse.Namespace, job: Job, folder: Path, part: str, train: bool) -> None:
    state = job.state()
    room = torch.zeros(sum(t.nbytes for t in flat(state).values()), dtype=torch.uint8)
    copies, plain, rows, most = [], [], dict[str, list[list[float]]](), dict[str, int]()
    for turn in range(args.rounds + 1):  # the first makes pools, rings and threads ready
        copies.append(copied(state, room))
        if train:
            plain.append(job.run())
            job.optimizer.step()
        for name, way in ways().items():
            if train and name in IDLE:
                continue
            place = folder / name.replace(" ", "_").replace(",", "")
            place.mkdir(exist_ok=True)
            state = job.state()
            with Meter() as m, Children() as children:
                began = time.perf_counter()
                ready, wait = way(state, place)
                called, step = time.perf_counter() - began, job.run() if train else 0.0
                asked = time.perf_counter()
                ready()
                held = time.perf_counter() - asked
                if train:
                    job.optimizer.step()
                wait()
                durable = time.perf_counter() - began
            most[name] = max(most.get(name, 0), m.peak_bytes + children.most)
            if turn:
                rows.setdefault(name, []).append([called, held, durable, step])
    copy = statistics.median(copies[1:])
    keep(part, "one copy in memory", {"blocked_s": copy, "bytes": len(room)})
    _told(part, rows, copy, most, statistics.median(plain) if train else 0.0)


def _told(
    part: str, rows: dict[str, list[list[float]]], copy: float, most: dict[str, int], plain: float
) -> None:
    mid = {n: [statistics.median(column) for column in zip(*told, strict=True)] for n, told in rows.items()}
    held = {n: statistics.median([r[0] + r[1] for r in told]) for n, told in rows.items()}
    first, theirs = mid.get(IDLE[0], [0.0] * 3)[2], held["dcp.async_save"]
    for name, (called, ready, durable, step) in mid.items():
        row = {
            "call_s": called, "ready_s": ready, "blocked_s": held[name], "durable_s": durable,
            "of_copy": held[name] / copy, "of_dcp_async": held[name] / theirs,
            "of_torch_save": held[name] / held["torch.save"],
        }  # fmt: skip
        if plain:
            row |= {"step_of_plain": step / plain}
        else:
            row |= {"durable_of_raw": durable / first, "extra_mb": most[name] / 1e6}
        keep(part, name, row)
    if plain:
        keep(part, "a step without a save", {"s": plain})


def save(args: argparse.Namespace, job: Job, folder: Path) -> None:
    _turns(args, job, folder, "save", train=False)


def train(args: argparse.Namespace, job: Job, folder: Path) -> None:
    _turns(args, job, folder, "train", train=True)


def load(args: argparse.Namespace, job: Job, folder: Path) -> None:
    state = job.state()
    torch.save(state, folder / "a.pt")
    safetensors.torch.save_file(flat(state), folder / "a.safetensors")
    dcp.save(state, checkpoint_id=folder / "dcp")
    kept = DataStates().open(str(folder / "ours"))
    kept.save(1, state, wait=True)
    like = flat(state)  # loads in place go into tensors of the same values
    them: dict[str, Callable[[], Any]] = {
        "torch.load, weights_only": lambda: torch.load(folder / "a.pt", weights_only=True),
        "torch.load, mmap": lambda: torch.load(folder / "a.pt", weights_only=True, mmap=True),
        "safetensors load_file": lambda: safetensors.torch.load_file(folder / "a.safetensors"),
        "safetensors load_file, copied into place": lambda: [
            like[n].copy_(t) for n, t in safetensors.torch.load_file(folder / "a.safetensors").items()
        ],
        "dcp.load, in place": lambda: dcp.load(state, checkpoint_id=folder / "dcp"),
        "datastates": kept.load,
        "datastates, in place": lambda: kept.load(like=state),
    }
    for cold in (False, True):
        took: dict[str, list[float]] = {name: [] for name in them}
        for _ in range(args.rounds):
            for name, act in them.items():
                if cold:
                    synced(folder, forget=True)
                began = time.perf_counter()
                got = act()
                for t in flat(got if isinstance(got, dict) else state).values():
                    t.sum()
                took[name].append(time.perf_counter() - began)
                del got
        base = statistics.median(took["safetensors load_file"])
        for name, seconds in took.items():
            middle = statistics.median(seconds)
            keep("load, cold" if cold else "load, warm", name, {"s": middle, "of_safetensors": middle / base})
    kept.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="save,train,load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; by default a temporary one")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    job = Job()
    print(f"{sum(p.numel() for p in job.model.parameters()) / 1e6:.1f}M parameters")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        meeting = f"file://{folder}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        for part in args.parts.split(","):
            place = Path(folder, part)
            place.mkdir()
            {"save": save, "train": train, "load": load}[part](args, job, place)
            while KEEPERS:
                KEEPERS.popitem()[1].close()
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
