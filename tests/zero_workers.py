"""Workers of ZeRO as real processes, for tests/training/test_zero.py: python zero_workers.py FOLDER.

Three processes run each scene below, on real text, and write what they saw; the tests say what it has to be.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
import struct
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdall.errors import HoldallError
from holdall.training.base import Run
from holdall.training.zero import ZeRO
from holdall.training.zero_activations import Arena, partitioned
from holdall.training.zero_state import merged

N, STEPS, CLIP, WIDTH = 3, 5, 0.5, 20
WAYS = {
    1: [(1, 3000), (3, 3000)],
    2: [(0, 3000), (2, 3000), (3, 10**6)],
}  # stage and bucket, for each number of workers
WAYS[3] = [(0, 3000), (1, 10**6), (2, 10**6), (3, 10**6), (2, 3000), (3, 1300)]
TEXT = (Path(__file__).parents[1] / "LICENSE").read_bytes()
TOKENS = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long() % 97


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(
            WIDTH, 2, batch_first=True, bias=False
        )  # a bias of keys has no gradient but noise, which Adam makes steps of
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH + 1), nn.GELU(), nn.Linear(3 * WIDTH + 1, WIDTH))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class Tiny(nn.Module):
    """A transformer with tied embeddings, whose number of parameters no worker count divides."""

    def __init__(self, remember=True):
        super().__init__()
        self.remember = remember
        self.wide = nn.Embedding(97, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.odd = nn.Parameter(torch.ones(WIDTH + 1))
        self.head = nn.Linear(WIDTH, 97, bias=False)
        self.head.weight = self.wide.weight

    def forward(self, tokens):
        x = self.wide(tokens) * self.odd[:WIDTH]
        for block in self.blocks:
            x = block(x) if self.remember else checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def started(kind=torch.optim.AdamW, dtype=torch.float32, **more):
    """A model and an optimizer with two groups, one without decay."""
    torch.manual_seed(1)
    model = Tiny(**more).to(dtype)
    flat = [p for p in model.parameters() if p.dim() < 2]
    rest = [p for p in model.parameters() if p.dim() >= 2]
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    return model, kind(groups, lr=5e-3, **options)


def batch(step, part=0, of=1):
    """Rows of the text, this worker's share of six."""
    rows = TOKENS[step * 150 : step * 150 + 150].view(6, 25).tensor_split(of)[part]
    return rows[:, :-1], rows[:, 1:]


def cross(model, pair):
    return nn.functional.cross_entropy(model(pair[0]).flatten(0, -2).float(), pair[1].flatten())


def plain(steps=STEPS, kind=torch.optim.AdamW, clip=CLIP, **more):
    """Ordinary training in one process with all rows: losses, norms, the model."""
    model, optimizer = started(kind, **more)
    losses, norms = [], []
    for i in range(steps):
        loss = cross(model, batch(i))
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms, model, optimizer


def apart(model, other):
    """The largest difference between two models' parameters."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def sent():
    """Bytes that this process's sockets sent and that were received, as the kernel counts them."""
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        place = Path("/proc/self/fd", fd)
        if not place.is_symlink() or not str(place.readlink()).startswith("socket:"):
            continue
        copy = socket.socket(fileno=os.dup(int(fd)))
        with copy:
            if copy.type == socket.SOCK_STREAM and copy.family in (socket.AF_INET, socket.AF_INET6):
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                total += struct.unpack_from("<Q", info, 120)[0]  # tcpi_bytes_acked
    return total


def alive():
    """Bytes of all tensors that live in this process, each storage once, as the garbage collector knows them."""
    gc.collect()
    seen = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for t in (thing, thing.grad if thing.is_leaf else None):
                if t is not None:
                    seen[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
    return sum(seen.values())


def equal(group, rank, n):
    """Losses, parameters and bytes of all stages, beside ordinary training."""
    losses, norms, truth, truth_optimizer = plain()
    told, found = {"norms": norms, "count": sum(p.numel() for p in truth.parameters())}, {}
    for stage, bucket in WAYS[n]:
        model, optimizer = started()
        recipe = ZeRO(stage=stage, bucket=bucket, clip=CLIP)
        with recipe.open(Run(model, optimizer, cross), group=group) as session:
            given = [session.step(batch(i, rank, n)) for i in range(STEPS - 1)]
            before, wire = session.traffic(), sent()
            given.append(session.step(batch(STEPS - 1, rank, n)))
            dist.barrier(group)
            now = session.traffic()
            found[f"{stage}-{bucket}"] = {
                "losses": max(abs(a - b) for a, b in zip(given, losses, strict=True)),
                "sent": now["sent_elements"] - before["sent_elements"],
                "bytes": now["sent_bytes"] - before["sent_bytes"],
                "wire": sent() - wire,
                "held": now,
                "need": session.need,
                "runs": len(session.gather.runs) if session.gather else 0,
            }
        states = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
        wanted = [truth_optimizer.state[p]["exp_avg_sq"] for p in truth.parameters()]
        found[f"{stage}-{bucket}"] |= {
            "params": apart(model, truth),
            "states": max(float((a - b).abs().max()) for a, b in zip(states, wanted, strict=True)),
            "sums": [float(p.detach().double().sum()) for p in model.parameters()],
        }
    return {**told, "stages": found}


def memory(group, rank, n):
    """All tensors alive before an update, less what was alive before the model was made."""
    told = {}
    x = batch(0, rank, n)
    for stage in range(4):
        before = alive() if rank == 0 else 0
        model, optimizer = started()
        with ZeRO(stage=stage, bucket=4000).open(Run(model, optimizer), group=group) as session:
            session.step(x)
            cross(model, x).backward()
            session.slices.reduce.settle()
            now = alive() if rank == 0 else 0
            told[stage] = {"alive": now - before, **session.ledger()}
            session.optimizer.step()
        del model, optimizer, session
    return told


def loops(group, rank, n):
    """A loop of one's own: two backwards for each step, the norm clipped by hand, and odd models."""
    told = {}
    for kind, stage in [
        (torch.optim.AdamW, 1),
        (torch.optim.AdamW, 3),
        (torch.optim.SGD, 2),
        (torch.optim.Adagrad, 3),
    ]:
        _, norms, truth, _ = plain(kind=kind)
        model, optimizer = started(kind)
        session = ZeRO(stage=stage, bucket=2500).open(Run(model, optimizer), group=group)
        schedule = torch.optim.lr_scheduler.LambdaLR(session.optimizer, lambda _: 1.0)
        mine = []
        for i in range(STEPS):
            session.optimizer.zero_grad()
            inputs, targets = batch(i, rank, n)
            for half in range(2):
                (cross(model, (inputs[half::2], targets[half::2])) / 2).backward()
            mine.append(float(session.clip_grad_norm_(CLIP)))
            session.optimizer.step()
            schedule.step()
        session.close()
        told[f"{kind.__name__}-{stage}"] = (
            apart(model, truth),
            max(abs(a - b) for a, b in zip(mine, norms, strict=True)),
        )
    for name, more in [("checkpoints", {"remember": False})]:
        truth, (model, optimizer) = plain()[2], started(**more)
        with ZeRO(stage=3, bucket=2500, clip=CLIP).open(Run(model, optimizer), group=group) as session:
            for i in range(STEPS):
                session.step(batch(i, rank, n))
            counts = session.traffic()
        told[name] = apart(model, truth), counts["sent_elements"] / STEPS
    return told


def frozen(group, rank, n):
    """Only some parameters are trained; the others are spread, too, and stay."""

    def made():
        model, _ = started()
        for name, p in model.named_parameters():
            p.requires_grad_("mlp.2" in name)
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    truth, optimizer = made()
    for i in range(STEPS):
        cross(truth, batch(i)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model, optimizer = made()
    with ZeRO(stage=3, bucket=2500).open(Run(model, optimizer), group=group) as session:
        for i in range(STEPS):
            session.step(batch(i, rank, n))
        told = session.traffic()
        kept = len(session.gather.here)
    whole = sum(p.nbytes for p in model.parameters())
    return apart(model, truth), told["params_bytes"] / whole, kept


def mixed(group, rank, n):
    """bfloat16 with float32 copies: steps that bfloat16 alone would round away add up."""
    model, optimizer = started(dtype=torch.bfloat16)
    start = [p.detach().clone() for p in model.parameters()]
    for g in optimizer.param_groups:
        g["lr"] = 1e-4
    with ZeRO(stage=2, bucket=4000).open(Run(model, optimizer), group=group) as session:
        for i in range(STEPS):
            session.step(batch(i, rank, n))
        held = session.traffic()
        saved = session.state_dict()
    copies = torch.cat([p["weights"] for v in saved["vectors"] for p in v["pieces"]])
    moved = sum(
        float((a != b.detach()).float().sum()) for a, b in zip(start, model.parameters(), strict=True)
    )
    return {
        "held": held,
        "type": str(copies.dtype),
        "fine": float((copies != copies.bfloat16()).float().mean()),
        "moved": moved,
    }


def overflow(group, rank, n):
    """A gradient that is infinite on one worker: all leave that step out, and halve the scale."""
    model, optimizer = started()
    with ZeRO(stage=2, bucket=4000, scale=256.0).open(Run(model, optimizer, cross), group=group) as session:
        session.step(batch(0, rank, n))
        before = [p.detach().clone() for p in model.parameters()]
        bad = cross(model, batch(1, rank, n)) * (float("inf") if rank == n - 1 else 1.0)
        session.backward(bad)
        session.optimizer.step()
        same = all(torch.equal(a, b.detach()) for a, b in zip(before, model.parameters(), strict=True))
        told = session.traffic()
        session.step(batch(1, rank, n))
    truth, tuned = started()
    for i in range(2):
        cross(truth, batch(i)).backward()
        tuned.step()
        tuned.zero_grad()
    return {"same": same, "skipped": told["skipped"], "scale": told["scale"], "apart": apart(model, truth)}


def shards(group, rank, n, folder):
    """Saved by three workers at stage 3."""
    model, optimizer = started()
    with ZeRO(stage=3, bucket=2500, clip=CLIP).open(Run(model, optimizer, cross), group=group) as session:
        for i in range(3):
            session.step(batch(i, rank, n))
        torch.save(session.state_dict(), folder / f"shard-{rank}.pt")
        with session.gathered():
            there = {k: v.detach().clone() for k, v in model.named_parameters()}
        rest = [session.step(batch(i, rank, n)) for i in range(3, STEPS)]
    saved = [torch.load(folder / f"shard-{r}.pt", weights_only=True) for r in range(n)] if _meet() else []
    whole = merged(saved)
    same = all(torch.equal(whole["model"][k], v) for k, v in there.items()) and set(there) == set(
        whole["model"]
    )
    return {
        "rest": rest,
        "merged": same,
        "sums": [float(p.detach().double().sum()) for p in model.parameters()],
    }


def again(group, rank, n, folder):
    """Loaded by fewer workers, at other stages and with other buckets."""
    saved = [torch.load(folder / f"shard-{r}.pt", weights_only=True) for r in range(N)]
    told = {}
    for stage in (0, 1, 2, 3):
        model, optimizer = started()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        with ZeRO(stage=stage, bucket=1700, clip=CLIP).open(
            Run(model, optimizer, cross), group=group
        ) as session:
            session.load_state_dict(saved)
            rest = [session.step(batch(i, rank, n)) for i in range(3, STEPS)]
            try:
                session.load_state_dict(saved[:2])
                fault = ""
            except HoldallError as missing:
                fault = str(missing)
        told[stage] = {
            "rest": rest,
            "fault": fault,
            "sums": [float(p.detach().double().sum()) for p in model.parameters()],
        }
    return told


class Parallel(nn.Module):
    """Half of a block's columns on each of two workers; what goes in and out is whole on both."""

    def __init__(self, rank, group):
        super().__init__()
        torch.manual_seed(3)
        up, down = torch.randn(8, 2, 16) / 4, torch.randn(2, 16, 8) / 4
        self.up, self.down, self.group = (
            nn.Parameter(up[:, rank].clone()),
            nn.Parameter(down[rank].clone()),
            group,
        )

    def forward(self, x):
        return x + _Sum.apply(torch.tanh(_Fork.apply(x, self.group) @ self.up) @ self.down, self.group)


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def activations(group, rank, n):
    """Blocks in tensor parallel: what is kept for backward, and gradients, with checkpoints whole and in parts."""
    blocks = [Parallel(rank, group) for _ in range(5)]
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(5))
    arena = Arena(5 * 84, torch.float32)
    told = {}
    ways = {
        "all": lambda block, x: block(x),
        "whole": lambda block, x: checkpoint(block, x, use_reentrant=True),
        "part": lambda block, x: partitioned(block, x, group),
        "arena": lambda block, x: partitioned(block, x, group, arena),
    }
    for name, way in ways.items():
        kept = {}

        def keep(t, kept=kept):
            kept[t.untyped_storage()._cdata] = t.nbytes
            return t

        given = start = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            for block in blocks:
                given = way(block, given)
        mine = {p.untyped_storage()._cdata for b in blocks for p in b.parameters()}
        used = arena.used
        (given**2).mean().backward()
        grads = [p.grad for b in blocks for p in b.parameters()] + [start.grad]
        told[name] = {
            "kept": sum(v for k, v in kept.items() if k not in mine),
            "grads": [g.flatten().tolist() for g in grads],
            "arena": [used, arena.used],
        }
        for b in blocks:
            b.zero_grad()
    return told


def hung(group, rank, n):
    """The second worker sleeps; the others say so, in one line, soon."""
    model, optimizer = started()
    session = ZeRO(stage=2, bucket=4000, timeout=1.5).open(Run(model, optimizer, cross), group=group)
    session.step(batch(0, rank, n))
    if rank == 1:
        time.sleep(4.5)
        return {"fault": "", "seconds": 0}
    start = time.monotonic()
    try:
        session.step(batch(1, rank, n))
    except HoldallError as fault:
        told = {"fault": str(fault), "seconds": time.monotonic() - start}
    session.close()
    return told


def died(group, rank, n):
    """The second worker is killed; the others say so."""
    model, optimizer = started()
    session = ZeRO(stage=3, bucket=4000, timeout=20.0).open(Run(model, optimizer, cross), group=group)
    session.step(batch(0, rank, n))
    if rank == 1:
        os.kill(os.getpid(), 9)
    try:
        session.step(batch(1, rank, n))
    except HoldallError as fault:
        return {"fault": str(fault)}
    return {"fault": ""}


def _meet():
    dist.barrier()
    return True


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), N), rank=rank, world_size=N)
    pair, doomed = dist.new_group([0, 1]), dist.new_group([0, 1, 2])
    single = [dist.new_group([r]) for r in range(N)][rank]
    told = {}

    def scene(name, act, *args):
        start = time.process_time()
        told[name] = act(*args)
        told.setdefault("seconds", {})[name] = time.process_time() - start
        (folder / f"told-{rank}.json").write_text(json.dumps(told))
        dist.barrier()

    scene("equal-3", equal, None, rank, 3)
    if rank < 2:
        told["equal-2"] = equal(pair, rank, 2)
        told["activations"] = activations(pair, rank, 2)
    if rank == 0:
        told["equal-1"] = equal(single, 0, 1)
    scene("memory", memory, None, rank, 3)
    scene("loops", loops, None, rank, 3)
    scene("frozen", frozen, None, rank, 3)
    scene("mixed", mixed, None, rank, 3)
    scene("overflow", overflow, None, rank, 3)
    scene("shards", shards, None, rank, 3, folder)
    if rank < 2:
        told["again"] = again(pair, rank, 2, folder)
    dist.barrier()
    told["hung"] = hung(doomed, rank, 3)
    told["died"] = died(None, rank, 3)
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    os._exit(0)  # with a rank that was killed nothing can be taken down in order


if __name__ == "__main__":
    started()[1].step()  # what torch and the room import at first use, once for all
    import holdall.training.zero_session  # noqa: F401

    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(r, Path(sys.argv[1]))) for r in range(N)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
