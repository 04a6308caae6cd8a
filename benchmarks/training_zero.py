"""ZeRO on real processes: equality, bytes held, bytes sent, a hard limit of memory, shards, and torch's own FSDP2.

    OMP_NUM_THREADS=1 python benchmarks/training_zero.py [--parts equal,bytes,limit,shards,activations,plan,speed]
        [--workers 4] [--steps 30] [--width 448] [--layers 8] [--stages 0,3] [--counts 1,2] [--text T]

Each part starts processes over gloo. equal: 30 steps at n = 1 to 4, beside one process with all batches. bytes: the
ledger, resident memory, and bytes that the kernel saw on the sockets (TCP_INFO), for each stage, FSDP2 and DDP. limit:
RLIMIT_DATA between what stages 3 and 0 need. shards: 4 workers to 3. activations: P_a by two workers in tensor
parallel. speed: CPU seconds of a step by stage and bucket, alternately in one process. Results are merged into
results/training_zero.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import resource
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from keeping import keeper
from torch import nn

import holdall.training.zero_session  # noqa: F401 (before processes fork, once for all)
from holdall.memory import release
from holdall.meter import resident_bytes
from holdall.training import ZeRO, zero_plan
from holdall.training.base import Run

RESULTS = Path(__file__).parent / "results" / "training_zero.json"
SENT = (2, 2, 2, 3)


keep = keeper(RESULTS, 24, 5)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, 8, d // 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.between(x))


class GPT(nn.Module):
    """Tied embeddings; one number too many for any worker count."""

    def __init__(self, width: int, layers: int, words: int = 8192):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(128, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.odd = nn.LayerNorm(width), nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) * self.odd + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def started(args: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = GPT(args.width, args.layers)
    flat = [p for p in model.parameters() if p.dim() < 2]
    rest = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=3e-4)


def tokens(args: argparse.Namespace) -> torch.Tensor:
    """Words of a text, the commonest by number, all others as one."""
    own = sorted(Path(inspect.__file__).parent.glob("[a-d]*.py"))  # the standard library's own source
    files = [Path(args.text)] if args.text else own
    given = " ".join(p.read_text(errors="replace") for p in files).split()
    order: dict[str, int] = {}
    return torch.tensor(
        [order.setdefault(w, min(len(order), 8191)) for w in given[: args.steps * 12 * 65 + 65]]
    )


def batch(data: torch.Tensor, step: int, part: int = 0, of: int = 1, rows: int = 12) -> tuple[Any, Any]:
    mine = data[step * rows * 65 : (step + 1) * rows * 65].view(rows, 65).tensor_split(of)[part]
    return mine[:, :-1], mine[:, 1:]


def cross(model: nn.Module, pair: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(pair[0]).flatten(0, 1), pair[1].flatten())


def on_wire() -> int:
    """Bytes that this process's sockets sent and that were received, by the kernel's count."""
    total = 0
    for place in Path("/proc/self/fd").iterdir():
        if not place.is_symlink() or not str(place.readlink()).startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(place.name))) as copy:
            if copy.type == socket.SOCK_STREAM and copy.family in (socket.AF_INET, socket.AF_INET6):
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                total += struct.unpack_from("<Q", info, 120)[0]  # tcpi_bytes_acked
    return total


def workers(n: int, act: Callable[..., Any], *given: Any) -> list[Any]:
    """What `act(rank, n, *given)` gives in n processes; a process that fails gives its fault as text."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:

        def run(rank: int) -> None:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo", store=dist.FileStore(f"{folder}/store", n), rank=rank, world_size=n
            )
            try:
                told = act(rank, n, *given)
            except (RuntimeError, MemoryError, Exception) as fault:  # noqa: BLE001
                told = f"{type(fault).__name__}: {' '.join(str(fault).split())[:160]}"
            Path(folder, str(rank)).write_text(json.dumps(told))
            os._exit(0)

        running = [fork.Process(target=run, args=(r,)) for r in range(n)]
        for w in running:
            w.start()
        for w in running:
            w.join()
        places = [Path(folder, str(r)) for r in range(n)]
        return [json.loads(p.read_text()) if p.exists() else "killed" for p in places]


def clip(model: nn.Module) -> None:
    """As torch's clip_grad_norm_, with the norm in float64."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.double().norm() ** 2 for g in grads]).sum().sqrt()
    factor = float(1.0 / (norm + 1e-6))
    for g in grads if factor < 1 else ():
        g.mul_(factor)


def plain(args: argparse.Namespace, data: torch.Tensor, exact: bool) -> tuple[list[float], nn.Module]:
    """One process with all rows. exact: the norm of gradients in float64; torch's own is off in the sixth digit."""
    model, optimizer = started(args)
    losses = []
    for i in range(args.steps):
        loss = cross(model, batch(data, i))
        loss.backward()
        clip(model) if exact else nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, model


def _equal(rank: int, n: int, args: argparse.Namespace, data: torch.Tensor, stage: int, truth: Path) -> Any:
    model, optimizer = started(args)
    with ZeRO(stage=stage, clip=1.0).open(Run(model, optimizer, cross)) as session:
        losses = [session.step(batch(data, i, rank, n)) for i in range(args.steps)]
    wanted = torch.load(truth, weights_only=True)
    pairs = zip(model.parameters(), wanted, strict=True)
    return losses, max(float((a.detach() - b).abs().max()) for a, b in pairs)


def equal(args: argparse.Namespace) -> None:
    data = tokens(args)
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        truth, curve = Path(folder, "model.pt"), Path(folder, "losses")

        def alone() -> None:
            torch.set_num_threads(1)
            losses, model = plain(args, data, True)
            torch.save([p.detach() for p in model.parameters()], truth)
            curve.write_text(json.dumps([losses, plain(args, data, False)[0]]))

        one = fork.Process(target=alone)
        one.start()
        one.join()
        wanted, rough = json.loads(curve.read_text())
        for n in map(int, args.counts.split(",")):
            for stage in map(int, args.stages.split(",")):
                told = workers(n, _equal, args, data, stage, truth)
                gap = max(abs(a - b) for losses, _ in told for a, b in zip(losses, wanted, strict=True))
                row = {
                    "parameters": max(p for _, p in told),
                    "losses": gap,
                    "first": wanted[0],
                    "last": wanted[-1],
                }
                row["losses by torch's norm"] = max(
                    abs(a - b) for a, b in zip(told[0][0], rough, strict=True)
                )
                keep("equal", f"n={n} stage {stage}", row)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _bytes(rank: int, n: int, args: argparse.Namespace, data: torch.Tensor, way: str) -> Any:
    release()
    start = resident_bytes()
    model, optimizer = started(args)
    count = sum(p.numel() for p in model.parameters())
    if way == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        stage, engine = (int(way[5:]), "fsdp2") if way.startswith("fsdp2") else (int(way), "own")
        session = ZeRO(stage=stage, engine=engine, bucket=args.bucket).open(Run(model, optimizer, cross))

    def one(i: int) -> None:
        x = batch(data, i, rank, n)
        if way == "ddp":
            cross(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            session.step(x)

    for i in range(2):
        one(i)
    release()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of steps
    one(2)
    told = {"peak": _peak() - start}
    dist.barrier()
    before, wall, used = on_wire(), time.perf_counter(), time.process_time()
    one(3)
    dist.barrier()
    told |= {
        "sent": on_wire() - before,
        "cpu": time.process_time() - used,
        "wall": time.perf_counter() - wall,
    }
    if way != "ddp" and engine == "own":
        told |= {k: v for k, v in session.traffic().items() if k.endswith("_bytes")}
        told["need"] = sum(session.need.values())
    return {"count": count, **told}


def bytes_(args: argparse.Namespace) -> None:
    data, n = tokens(args), args.workers
    for way in ("0", "1", "2", "3", "fsdp22", "fsdp23", "ddp"):
        told = workers(n, _bytes, args, data, way)
        if isinstance(told[0], str):
            keep("bytes", way, {"fault": told[0]})
            continue
        count, row = told[0].pop("count"), told[0]
        stage = 0 if way == "ddp" else int(way[-1])
        plan = zero_plan.planned(count, n, **zero_plan.FP32)[stage]
        row = {k: max(t[k] for t in told) for k in row}
        if "states_bytes" in row:
            row["ledger"] = row["params_bytes"] + row["grads_bytes"] + row["states_bytes"]
            row["ledger of table"] = row["ledger"] / plan.total
        row["wire of formula"] = row["sent"] / (4 * plan.sent)
        keep(
            "bytes",
            way if way in ("ddp",) or way.startswith("f") else f"stage {way}",
            {"parameters": count, **row},
        )


def _limit(rank: int, n: int, args: argparse.Namespace, data: torch.Tensor, stage: int, beside: int) -> Any:
    with Path("/proc/self/status").open() as lines:
        now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + beside, now + beside))
    model, optimizer = started(args)
    session = ZeRO(stage=stage, bucket=args.bucket, timeout=30).open(Run(model, optimizer, cross))
    return [session.step(batch(data, i, rank, n)) for i in range(4)]


def limit(args: argparse.Namespace) -> None:
    """A hard limit that stage 3 keeps and stage 0 does not."""
    data, n = tokens(args), args.workers
    count = sum(p.numel() for p in started(args)[0].parameters())
    plans = zero_plan.planned(count, n, **zero_plan.FP32)
    beside = int(plans[0].total * args.share)
    for stage in map(int, args.stages.split(",")):
        told = workers(n, _limit, args, data, stage, beside)
        faults = sorted((t for t in told if isinstance(t, str)), key=lambda t: "did not come" in t)
        fault = faults[0] if faults else ""  # the worker that had no memory first, then those that missed it
        row = {
            "limit": beside,
            "table": plans[stage].total,
            "steps": 0 if fault else len(told[0]),
            "fault": fault,
        }
        keep("limit", f"stage {stage}", row)


def _save(rank: int, n: int, args: argparse.Namespace, data: torch.Tensor, folder: str) -> Any:
    model, optimizer = started(args)
    with ZeRO(stage=3, clip=1.0).open(Run(model, optimizer, cross)) as session:
        for i in range(3):
            session.step(batch(data, i, rank, n))
        torch.save(session.state_dict(), f"{folder}/{rank}.pt")
        dist.barrier()
        return [session.step(batch(data, i, rank, n)) for i in range(3, 6)]


def _load(rank: int, n: int, args: argparse.Namespace, data: torch.Tensor, folder: str, saved: int) -> Any:
    model, optimizer = started(args)
    with ZeRO(stage=3, clip=1.0).open(Run(model, optimizer, cross)) as session:
        session.load_state_dict(
            [torch.load(f"{folder}/{r}.pt", weights_only=True, mmap=True) for r in range(saved)]
        )
        return [session.step(batch(data, i, rank, n)) for i in range(3, 6)]


def shards(args: argparse.Namespace) -> None:
    data = tokens(args)
    with tempfile.TemporaryDirectory() as folder:
        went = workers(4, _save, args, data, folder)[0]
        on = workers(3, _load, args, data, folder, 4)[0]
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
    row = {"losses": max(abs(a - b) for a, b in zip(went, on, strict=True)), "bytes": size, "last": went[-1]}
    keep("shards", "4 to 3", row)


def _speed(rank: int, n: int, args: argparse.Namespace, data: torch.Tensor, ways: list[Any]) -> Any:
    open_ = []
    for stage, bucket, engine in ways:
        model, optimizer = started(args)
        open_.append(ZeRO(stage=stage, bucket=bucket, engine=engine).open(Run(model, optimizer, cross)))
    spent = [[0.0, 0.0] for _ in ways]
    for i in range(args.repeats + 1):
        for which, session in enumerate(open_):
            dist.barrier()
            wall, used = time.perf_counter(), time.process_time()
            session.step(batch(data, i % args.steps, rank, n))
            if i:
                spent[which][0] += (time.process_time() - used) / args.repeats
                spent[which][1] += (time.perf_counter() - wall) / args.repeats
    return spent


def speed(args: argparse.Namespace) -> None:
    """Two workers; ways in turn, so that what else runs on the machine meets all alike."""
    data = tokens(args)
    ways = [(0, 1 << 18, "own"), (1, 1 << 18, "own"), (2, 1 << 18, "own"), (3, 1 << 18, "own")]
    ways += [(2, 1 << 22, "own"), (3, 1 << 22, "own"), (2, 1 << 22, "fsdp2"), (3, 1 << 22, "fsdp2")]
    told = workers(2, _speed, args, data, ways)
    if isinstance(told[0], str):
        raise SystemExit(told[0])
    first = told[0][0]
    for (stage, bucket, engine), (used, wall) in zip(ways, told[0], strict=True):
        row = {
            "cpu": used,
            "wall": wall,
            "cpu of stage 0": used / first[0],
            "wall of stage 0": wall / first[1],
        }
        keep("speed", f"{engine} {stage} bucket {bucket}", row)


def _activations(rank: int, n: int, args: argparse.Namespace, _: Any) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch.utils.checkpoint import checkpoint
    from zero_workers import Parallel

    from holdall.training.zero_activations import partitioned

    told = {}
    ways: dict[str, Any] = {"kept": None, "checkpoints": checkpoint, "P_a": partitioned}
    for name, way in ways.items():
        blocks = [Parallel(rank, dist.group.WORLD) for _ in range(24)]
        x = torch.randn(16, 4096, 8).requires_grad_()
        release()
        start, seen = resident_bytes(), {}

        def count(t: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            return t

        y = x
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            for b in blocks:
                extra = {"use_reentrant": True} if way is checkpoint else {}
                y = b(y) if way is None else way(b, y, **extra)
        release()
        told[name] = {"saved": sum(seen.values()), "resident": resident_bytes() - start}
        y.mean().backward()
        del y, x
    return told


def activations(args: argparse.Namespace) -> None:
    for name, row in workers(2, _activations, args, None)[0].items():
        keep("activations", name, row)


def plan(_: argparse.Namespace) -> None:
    for p in zero_plan.planned(7.5e9, 64):
        keep(
            "plan", f"7.5B, 64, stage {p.stage}", {"GB": round(p.total / 1e9, 1), "sent of P": p.sent / 7.5e9}
        )


PARTS = {
    "plan": plan, "equal": equal, "bytes": bytes_, "limit": limit, "shards": shards, "activations": activations,
    "speed": speed,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--bucket", type=int, default=1 << 18)
    parser.add_argument("--share", type=float, default=0.7, help="of what stage 0 holds, for limit")
    parser.add_argument("--stages", default="0,1,2,3", help="for equal and limit")
    parser.add_argument("--counts", default="1,2,3,4", help="of workers, for equal")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--text", help="a file of text")
    args = parser.parse_args()
    started(argparse.Namespace(width=8, layers=1))[1].step()  # imports of torch's own, before anything forks
    for part in args.parts.split(","):
        PARTS[part](args)


if __name__ == "__main__":
    main()
