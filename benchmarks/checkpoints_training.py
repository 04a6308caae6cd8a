"""Training that is checkpointed often to a slow disk, and training that is killed: DataStates beside what people do.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints_training.py [--parts slow,kills] [--steps 10] [--kills 100]

slow: a GPT on real text with AdamW, a state of 12 bytes a parameter, saved every step and every fifth to a disk of
`--rate` bytes a second (a token bucket in the writer of each arm; the machine's own disk is faster than that and too
unsteady). The compute of a step is `--longer` times what one copy of the state to that disk would take, as large runs
have it: a batch as large as that asks for. Each arm trains the same steps; blocked are save and ready together.
over_own is a step's time over what is left of it without what it was blocked: other load does not move it, but what
copies take of the processor is not in it; that is in cpu_s, of all threads (not of the child of a fork). beside_MB is
the peak of memory above that of training without checkpoints.
kills: a process trains and saves each step, and is killed with SIGKILL at a random moment; another one resumes from
what is there. Its state has to be one that was saved, bit for bit, and its losses those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from keeping import keeper

from holdall.checkpoints import DataStates, DeepCopy, TorchSave
from holdall.checkpoints.quality import same
from holdall.files import atomic_write
from holdall.meter import Meter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from small_gpt import GPT, windows

RESULTS = Path(__file__).parent / "results" / "checkpoints_training.json"


keep = keeper(RESULTS, 32)


def text() -> str:
    """Real text that is everywhere: the standard library's own source."""
    return "".join(p.read_text(errors="ignore") for p in sorted(Path(os.__file__).parent.glob("*.py"))[:60])


class Run:
    """The same run each time it is made."""

    def __init__(self, width: int, batch: int, length: int, steps: int):
        torch.manual_seed(0)
        self.model = GPT(d=width, layers=4, heads=4, context=length)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.batches, self.at = list(windows(text(), steps, batch, length)), 0
        self.losses: list[float] = []

    def forward(self) -> None:
        loss = self.model(*self.batches[self.at])
        loss.backward()
        self.losses.append(loss.item())

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.at += 1

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "at": self.at}

    def nbytes(self) -> int:
        return 12 * sum(p.numel() for p in self.model.parameters())


class Throttled:
    """atomic_write.write at so many bytes a second: the slow disk of the arms that write with torch.save."""

    def __init__(self, rate: float):
        self._rate, self._real, self._free_at, self._turn = rate, atomic_write.write, 0.0, threading.Lock()

    def __enter__(self) -> None:
        def write(file: atomic_write, piece: Any) -> None:
            with self._turn:
                now = time.monotonic()
                self._free_at = until = max(self._free_at, now) + len(piece) / self._rate
            time.sleep(until - now)
            self._real(file, piece)

        atomic_write.write = write  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        atomic_write.write = self._real  # type: ignore[method-assign]


def arm(recipe: Any, args: argparse.Namespace, batch: int, every: int) -> dict[str, float]:
    run = Run(args.width, batch, 64, args.steps + 2)
    run.forward(), run.update()
    with tempfile.TemporaryDirectory() as folder, Throttled(args.rate):
        memory = f"{args.window}B" if isinstance(recipe, DataStates) and recipe.how == "ring" else None
        kept = recipe.open(folder, memory) if recipe is not None else None
        with Meter() as m:
            receipts, began, computing = [], time.perf_counter(), 0.0
            for step in range(args.steps):
                if kept is not None and step % every == 0:
                    receipts.append(kept.save(step, run.state()))
                started = time.perf_counter()
                run.forward()
                computing += time.perf_counter() - started
                if kept is not None:
                    kept.ready()
                run.update()
            trained = time.perf_counter() - began
            for receipt in receipts:
                receipt.wait()
        durable = time.perf_counter() - began
        row = {
            "step_s": trained / args.steps,
            "over_own": trained / (trained - sum(r.blocked for r in receipts)),
            "cpu_s": m.cpu_seconds / args.steps,
            "blocked_s": sum(r.blocked for r in receipts) / max(len(receipts), 1),
            "forward_s": computing / args.steps,
            "all_durable_s": durable,
            "extra_MB": m.peak_bytes / 1e6,
            "loss": run.losses[-1],
        }
        if kept is not None:
            if receipts:
                kept.load()
            kept.close()
    return row


def slow(args: argparse.Namespace) -> None:
    probe = Run(args.width, 1, 64, 3)
    state = probe.nbytes()
    wanted = args.longer * state / args.rate
    timed = []
    for batch in (4, 4, 8):
        probe = Run(args.width, batch, 64, 2)
        began = time.perf_counter()
        probe.forward()
        timed.append((time.perf_counter() - began) / batch)
    batch = max(1, round(wanted / min(timed)))
    shown = {
        "state_MB": state / 1e6,
        "rate_MBs": args.rate / 1e6,
        "batch": batch,
        "window_MB": args.window / 1e6,
    }
    keep("slow", "setting", shown)
    arms: dict[str, Any] = {
        "no checkpoints": None,
        "torch.save": TorchSave(keep=2),
        "deep copy and thread": DeepCopy(keep=2),
        "DataStates, ring": DataStates(rate=args.rate),
        "DataStates, fork": DataStates(how="fork", rate=args.rate),
    }
    for every in (1, 5):
        plain = base = 0.0
        for name, recipe in arms.items():
            row = arm(recipe, args, batch, every)
            if recipe is None:
                plain, base = row["cpu_s"], row["extra_MB"]
            told = {**row, "cpu_over_plain": row["cpu_s"] / plain, "beside_MB": row["extra_MB"] - base}
            keep("slow", f"{name}, every {every}", told)


def kills(args: argparse.Namespace) -> None:
    """What each run may be found at was written down by a run that nobody kills."""
    steps, rng = 8, random.Random(0)
    whole = Run(64, 2, 32, steps)
    truth: dict[int, Any] = {}
    for _ in range(steps):
        whole.forward(), whole.update()
        state = whole.state()
        truth[whole.at] = _copied(state)
    for how in ("ring", "fork"):
        recipe, found, none, left, wrong, other = DataStates(how=how, chunk=1 << 16), [], 0, 0, 0, 0
        for _ in range(args.kills // 2):
            with tempfile.TemporaryDirectory() as folder:
                pid = os.fork()
                if pid == 0:
                    _train(recipe, folder, steps)
                time.sleep(rng.uniform(0.01, args.longest))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                with recipe.open(folder, "1MB") as kept:
                    if not kept.steps():
                        none += 1
                        continue
                    again = Run(64, 2, 32, steps)
                    state = kept.load(like=again.state())
                    again.optimizer.load_state_dict(state["optimizer"])
                    again.at = state["at"]
                    wrong += not same(again.state(), truth[again.at])
                    found.append(again.at)
                    while again.at < steps:
                        again.forward(), again.update()
                    other += again.losses != whole.losses[found[-1] :]
                    kept.save(99, again.state(), wait=True)
                    names = [p for p in Path(folder).rglob("*") if p.is_file()]
                    left += len(names) - 2 * len(kept.steps())
        row = {
            "kills": args.kills // 2, "resumed": len(found), "before_the_first": none, "steps_found": len(set(found)),
            "wrong_states": wrong, "other_losses": other, "files_left": left,
        }  # fmt: skip
        keep("kills", f"DataStates, {how}", row)


def _copied(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    if isinstance(x, dict):
        return {k: _copied(v) for k, v in x.items()}
    return type(x)(map(_copied, x)) if isinstance(x, list | tuple) else x


def _train(recipe: DataStates, folder: str, steps: int) -> None:
    """In a process that will be killed: each step is saved twice, the second time over the newest."""
    try:
        run = Run(64, 2, 32, steps)
        with recipe.open(folder, "1MB") as kept:
            kept.attach(run.optimizer)
            while run.at < steps:
                run.forward(), run.update()
                for _ in range(2):
                    kept.save(run.at, run.state())
        time.sleep(60)
    finally:
        os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="slow,kills")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e8)
    parser.add_argument("--longer", type=float, default=1.5)
    parser.add_argument("--window", type=int, default=16_000_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds until a run is killed, at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.parts.split(","):
        {"slow": slow, "kills": kills}[part](args)


if __name__ == "__main__":
    main()
