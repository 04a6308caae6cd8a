"""Ranks of one training run are killed at random moments of saves, loads and training; what is found then.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints_kills.py [--stores datastates,bytecheckpoint] [--kills 100]

Two processes train a GPT on real text over gloo (gradients are averaged) and save each step twice, the second time
over the newest. One of the two is killed with SIGKILL: a third of the times after a random part of a load, a third of
a save, a third anywhere. The next two go on from what is there. What a run may be found at was written down by one
that nobody kills: states bit for bit (by digest) and losses.
named: the other rank told which one is lost within its patience (of the saves that it was in; in training it is torch
that notices). left: files beside those of whole checkpoints after the next durable save.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from small_gpt import GPT, windows

from holdall.checkpoints import ByteCheckpoint, DataStates
from holdall.checkpoints.bytecheckpoint_ranks import RankLost
from holdall.errors import HoldallError
from holdall.report import provenance

RESULTS = Path(__file__).parent / "results" / "checkpoints_kills.json"
WORLD, PATIENCE, STEPS = 2, 2.0, 240
AIMS = ("loading", "saving", "opened")
STORES = {
    "datastates": DataStates(chunk=1 << 16, patience=PATIENCE),
    "bytecheckpoint": ByteCheckpoint(patience=PATIENCE),
}
TEXT = "".join(p.read_text(errors="ignore") for p in sorted(Path(os.__file__).parent.glob("*.py"))[:30])


class Run:
    """The same run each time it is made, on one rank of it."""

    def __init__(self, rank: int):
        torch.manual_seed(0)
        self.model = GPT(d=96, layers=3, heads=3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.batches, self.at = list(windows(TEXT, STEPS, 2, 32, seed=rank)), 0

    def step(self) -> float:
        loss = self.model(*self.batches[self.at])
        loss.backward()
        for p in self.model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= WORLD
        return loss.item()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.at += 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": {"at": self.at},
        }

    def load(self, state: Any) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.at = state["extra"]["at"]

    def digest(self) -> str:
        told = hashlib.sha256()
        for p in self.model.parameters():
            told.update(p.detach().numpy().tobytes())
            for _, t in sorted(self.optimizer.state.get(p, {}).items()):
                told.update(t.numpy().tobytes())
        return told.hexdigest()


def rank(rank: int, meeting: str, store: str, folder: str, steps: int, line: Connection) -> None:
    """In a process of its own, which may be killed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    run = Run(rank)
    try:
        with STORES[store].open(folder, "2MB") as kept:
            line.send(("opened", None))
            if kept.steps():
                line.send(("loading", None))
                run.load(kept.load(like=run.state()))
            line.send(("loaded", (run.at, run.digest())))
            while run.at < steps:
                loss = run.step()
                kept.ready()
                run.update()
                line.send(("step", (run.at, loss, run.digest())))
                for _ in range(2):
                    line.send(("saving", run.at))
                    kept.save(run.at, run.state())
                if run.at % 4 == 0:
                    kept.save(run.at, run.state(), wait=True)
                    dist.barrier()
                    line.send(("durable", _left(Path(folder), kept.steps()) if rank == 0 else 0))
                    dist.barrier()
    except RankLost as fault:
        line.send(("lost", fault.rank))
    except (HoldallError, RuntimeError) as fault:
        line.send(("ended", str(fault).splitlines()[0]))
    line.close()
    os._exit(0)


def _left(folder: Path, steps: list[int]) -> int:
    """Folders and files that are of no whole checkpoint."""
    names = [p.name for p in folder.iterdir()]
    return (
        len([n for n in names if n.endswith(".tmp")])
        + len([n for n in names if n.endswith(".data")])
        - len(steps)
    )


class Pair:
    """Both ranks, from their start until one is killed or all steps are done."""

    def __init__(self, store: str, folder: Path, meeting: Path, steps: int):
        made = multiprocessing.get_context("fork")
        self.lines, self.ranks, self.told = [], [], [list[Any]() for _ in range(WORLD)]
        for r in range(WORLD):
            mine, theirs = made.Pipe(False)
            worker = made.Process(target=rank, args=(r, str(meeting), store, str(folder), steps, theirs))
            worker.start()
            theirs.close()
            self.lines.append(mine)
            self.ranks.append(worker)

    def hear(self, until: float, aim: tuple[str, ...] = ()) -> bool:
        """Take down what they say: until then, or until one says what is aimed at, or both have ended."""
        open_ = {line: r for r, line in enumerate(self.lines) if not line.closed}
        while open_ and (left := until - time.monotonic()) > 0:
            for line in wait(list(open_), left):
                try:
                    said = line.recv()
                except EOFError:
                    open_.pop(line)
                    line.close()
                    continue
                self.told[self.lines.index(line)].append(said)
                if said[0] in aim:
                    return True
        return False

    def kill(self, victim: int) -> None:
        os.kill(self.ranks[victim].pid, signal.SIGKILL)
        self.hear(time.monotonic() + 60)
        for worker in self.ranks:
            worker.join()


def trial(
    store: str, folder: Path, meeting: Path, rng: random.Random, n: int, truth: Any, row: dict[str, Any]
) -> int:
    aim, victim = AIMS[n % len(AIMS)], rng.randrange(WORLD)
    pair = Pair(store, folder, meeting, STEPS)
    heard = pair.hear(time.monotonic() + 30, (aim, "loaded") if aim == "loading" else (aim,))
    pair.hear(time.monotonic() + rng.uniform(0, {"loading": 0.03, "saving": 0.08}.get(aim, 1.5)))
    during = pair.told[victim][-1][0] if pair.told[victim] else "start"
    pair.kill(victim)
    row["kills"] += 1
    row[f"in_{during}"] = row.get(f"in_{during}", 0) + 1
    row["unheard"] += not heard
    states, losses = truth
    for r, told in enumerate(pair.told):
        for what, value in told:
            if what == "loaded":
                row["loads"] += 1
                row["wrong_states"] += states[r].get(value[0]) != value[1]
            elif what == "step":
                row["other_losses"] += losses[r][value[0]] != value[1]
            elif what == "durable":
                row["durable"] += 1
                row["files_left"] += value
            elif what == "lost":
                row["named"] += value == victim
                row["misnamed"] += value != victim
            elif what == "ended":
                row["told_otherwise"] += 1
    reached = max((v[0] for told in pair.told for w, v in told if w in ("step", "loaded")), default=0)
    last = [told[-1][0] for r, told in enumerate(pair.told) if r != victim]
    row["hung"] += any(x not in ("lost", "ended") for x in last)
    return reached


def kills(store: str, count: int) -> None:
    names = ("kills", "unheard", "loads", "wrong_states", "other_losses", "durable", "files_left", "named",
             "misnamed", "told_otherwise", "hung")  # fmt: skip
    row: dict[str, Any] = dict.fromkeys(names, 0)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as top:
        whole = Pair(store, Path(top) / "whole", Path(top) / "meeting", STEPS)
        whole.hear(time.monotonic() + 600)
        states, losses = [dict[int, str]() for _ in range(WORLD)], [dict[int, float]() for _ in range(WORLD)]
        for r, told in enumerate(whole.told):
            for what, value in told:
                if what == "loaded":
                    states[r][value[0]] = value[1]
                elif what == "step":
                    losses[r][value[0]], states[r][value[0]] = value[1], value[2]
        for n in range(count):
            folder = (
                Path(top) / f"run{n // 6}"
            )  # anew now and then, so that steps stay among those written down
            trial(store, folder, Path(top) / f"meeting{n}", rng, n, (states, losses), row)
        row["furthest_step"] = max(states[0])
    keep("ranks", store, row)


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    print(f"{part}: {name:16s} " + "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault(part, {})[name] = row
    found["provenance"] = provenance()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--kills", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for store in args.stores.split(","):
        kills(store, args.kills)


if __name__ == "__main__":
    main()
