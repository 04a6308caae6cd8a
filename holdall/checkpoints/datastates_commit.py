"""All ranks say that their files are on the disk, then rank 0 publishes; and the way back."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any

from holdall.checkpoints.bytecheckpoint_ranks import Ranks
from holdall.checkpoints.datastates_flow import Job
from holdall.checkpoints.publish import Folder, Lock
from holdall.checkpoints.refill import Pair, pairs, refreshed
from holdall.checkpoints.shards import Shard
from holdall.checkpoints.state import build, viewed
from holdall.errors import BadInput, CorruptArtefact, HoldallError
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

NONCE = 8  # characters of a token that all saves of a keeper share; how many it began before this one follow


class Committer:
    """Two phases for each tier: every rank reports its file, then the manifest is renamed. Runs in one thread."""

    def __init__(self, near: Folder, far: Folder | None, ranks: Ranks, keep: int):
        self._near, self._far, self._ranks, self._keep = near, far, ranks, keep
        self._lock = Lock(far if far is not None and far.local else near)
        self._holds: set[str] = set()
        self.sent = 0

    def begin(self, job: Job) -> None:
        if self._ranks.rank == 0:
            self._lock.hold()
            self._holds.add(job.token)
        self._near.begin(job.token)

    def commit(self, job: Job) -> int:
        """Bytes of all ranks, when the last tier has them."""
        try:
            total = self._phase(job, self._near)
            job.saving.near = True
            if self._far is not None:
                try:
                    self._far.send(job.token, job.path.name, job.path)
                    self.sent += job.size
                except (OSError, HoldallError) as fault:
                    job.fault = fault
                total = self._phase(job, self._far)
            return total
        finally:
            if job.token in self._holds:
                self._holds.remove(job.token)
                self._lock.release()

    def _phase(self, job: Job, folder: Folder) -> int:
        fault = job.fault
        vote = {
            "token": job.token.split("-")[0],
            "fault": None if fault is None else _said(fault),
            "shard": [job.path.name, job.size, job.digest],
        }
        step = job.saving.step

        def decide(said: Sequence[Any]) -> list[int]:
            faults = [f"rank {r}: {s['fault']}" for r, s in enumerate(said) if s["fault"] is not None]
            if len({s["token"] for s in said}) > 1:
                faults = [f"ranks save different steps: {[s['token'] for s in said]}"]
            try:
                if faults:
                    folder.drop(job.token)
                    raise HoldallError(
                        _not_saved(step, faults[0].removeprefix("rank 0: " * (len(said) == 1)))
                    )
                told = {"step": step, "world": len(said), "shards": [s["shard"] for s in said]}
                told["id"] = secrets.token_hex(8)
                folder.publish(step, told, job.token, self._keep, partial(_later, job.token))
            except OSError as failed:
                if isinstance(failed, HoldallError):
                    raise
                raise HoldallError(_not_saved(step, _said(failed))) from failed
            return [sum(s["shard"][1] for s in said)] * len(said)

        total: int = self._ranks.together(vote, decide, "it ends a save")
        return total


def _later(mine: str, token: str) -> bool:
    """Whether a token is of a later save of the same keeper: another rank may have begun it before this one."""
    own, other = mine.partition("-")[2], token.partition("-")[2]
    return other[:NONCE] == own[:NONCE] and int(other[NONCE:], 16) > int(own[NONCE:], 16)


def _said(fault: BaseException) -> str:
    if isinstance(fault, OSError) and not isinstance(fault, HoldallError):
        return f"{fault.strerror or fault}"
    return " ".join(str(fault).split()) or type(fault).__name__


def _not_saved(step: int, why: str) -> str:
    return f"step {step} is not saved: {why}; the last whole checkpoint stands"


def load(
    folders: tuple[Folder, Folder | None], ranks: Ranks, step: int | None, like: Any, threads: int
) -> tuple[Any, int]:
    """A state of this rank, and the bytes that were read for it: from the nearest tier that has it whole."""
    near, far = folders

    def find(said: Sequence[Any]) -> list[Any]:
        if len(set(map(str, said))) > 1:
            raise BadInput("step", str(said), "the same on all ranks")
        steps = {*near.steps(), *(far.steps() if far else ())}
        chosen = step if step is not None else max(steps, default=None)
        first = near if far is None or chosen in near.steps() else far
        chosen = first.chosen(chosen)
        return [[chosen, first is near]] * len(said)

    chosen, is_near = ranks.together(step, find, "it looks for a checkpoint")
    agreed = _Agreed(ranks)
    if is_near and far is not None and chosen in far.steps():
        try:
            return _load(near, agreed, chosen, like, threads)
        except CorruptArtefact:  # of the local tier only: the other one has it, too
            return _load(far, agreed, chosen, like, threads)
    return _load(near if is_near else far or near, agreed, chosen, like, threads)


class _Agreed:
    """Nothing is changed on any rank where something does not fit on one. Ranks ask each other once: one of them may
    have to turn to another tier afterwards, of which the others know nothing."""

    def __init__(self, ranks: Ranks):
        self.ranks, self._asked = ranks, False

    def on(self, fault: HoldallError | None) -> None:
        if self._asked:
            if fault is not None:
                raise fault
            return
        self._asked = True

        def decide(said: Sequence[Any]) -> list[None]:
            bad = [f"rank {r}: {s}" for r, s in enumerate(said) if s is not None]
            if bad:
                raise HoldallError(bad[0])
            return [None] * len(said)

        try:
            self.ranks.together(None if fault is None else str(fault), decide, "it compares states")
        except HoldallError as failed:
            raise fault or failed from None


def _load(folder: Folder, agreed: _Agreed, step: int, like: Any, threads: int) -> tuple[Any, int]:
    ranks = agreed.ranks
    told, url = folder.read(step)
    path = f"{folder.url}/{step}.checkpoint"
    try:
        world, (name, size, digest) = (
            told["world"],
            told["shards"][ranks.rank if told["world"] == ranks.world else 0],
        )
        if "/" in name or not isinstance(name, str):
            raise ValueError("a file outside of the folder")
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise CorruptArtefact(path, f"the manifest contradicts itself ({fault})") from None
    if world != ranks.world:
        wanted = f"{world}, as saved it; checkpoints.bytecheckpoint loads on any number of ranks"
        raise BadInput("ranks", ranks.world, wanted)
    with Shard(f"{url}/{name}") as shard:
        if shard.size != size or shard.digest != digest:
            raise CorruptArtefact(shard.url, "it is not the file that the manifest names")
        tree = shard.meta.get("tree")
        if like is None:
            return build(tree, shard.mapped(threads), shard.url), shard.read_bytes
        unfit: HoldallError | None = None
        found: list[Pair] = []
        try:
            found = _checked(like, tree, shard)
        except HoldallError as failed:
            unfit = failed
        agreed.on(unfit)
        return _filled(like, tree, found, shard, threads), shard.read_bytes


def _checked(like: Any, tree: Any, shard: Shard) -> list[Pair]:
    try:
        return pairs(like, tree)
    except (KeyError, AttributeError, IndexError, StopIteration) as fault:
        raise CorruptArtefact(shard.url, f"its tree is not one ({fault})") from None


def _filled(like: Any, tree: Any, found: list[Pair], shard: Shard, threads: int) -> Any:
    """Bytes go straight into tensors of the CPU that lie in order; into others by way of memory."""
    targets, later, made = [], list[tuple[dict[str, Any], Any, Any]](), dict[str, Any]()
    for node, tensor in found:
        if not tensor.numel():
            continue
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            raw = tensor.reshape(-1).view(torch.uint8)
        else:
            raw = torch.empty(tensor.nbytes, dtype=torch.uint8)
            later.append((node, tensor, raw))
        targets.append((node["x"], int(node.get("at", 0)), raw.numpy()))
    missing = _lacking(like, tree, found)
    for name in missing:
        section = shard.sections.get(name)
        if section is None:
            raise CorruptArtefact(shard.url, f"no tensor {name!r}")
        made[name] = torch.empty(section.stop - section.start, dtype=torch.uint8)
        targets.append((name, 0, made[name].numpy()))
    shard.read_into(targets, threads)
    for node, tensor, raw in later:
        with torch.no_grad():
            tensor.copy_(viewed(raw, {k: v for k, v in node.items() if k not in ("at", "grad")}))
    return refreshed(like, tree, lambda node: viewed(made[node["x"]], node))


def _lacking(like: Any, tree: Any, found: list[Pair]) -> set[str]:
    """Leaves that `like` has no place for (those of an optimizer that did not step yet)."""
    from holdall.checkpoints.state import nodes

    filled = {id(node) for node, _ in found}
    return {node["x"] for node in nodes(tree) if id(node) not in filled}
