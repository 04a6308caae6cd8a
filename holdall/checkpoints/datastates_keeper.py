"""An open folder of DataStates: saves that go on while training does, and loads straight into place."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdall.checkpoints import datastates_fork as fork
from holdall.checkpoints.bytecheckpoint_ranks import Ranks
from holdall.checkpoints.datastates_commit import NONCE, Committer, load
from holdall.checkpoints.datastates_device import Side, pinned
from holdall.checkpoints.datastates_early import Owners, early
from holdall.checkpoints.datastates_flow import Flow, Job, Saving
from holdall.checkpoints.publish import Folder
from holdall.checkpoints.shards import Plan
from holdall.checkpoints.state import flatten, ordered
from holdall.errors import BadInput
from holdall.files import is_local, local_path
from holdall.kinds import Keeper, Spend
from holdall.parts.ring import BLOCK, Ring

if TYPE_CHECKING:
    from holdall.checkpoints.datastates import DataStates

LEAST = 1_000_000  # bytes: several chunks of whole blocks
WINDOW = 64 << 20


class Kept(Keeper):
    """All ranks open it, save and load together. `attach` an optimizer and nobody can forget `ready`."""

    def __init__(self, recipe: DataStates, url: str, memory: Spend, ranks: Ranks):
        self.recipe, self._ranks = recipe, ranks
        self.limit = recipe.allowed(memory, LEAST, "chunks wait in it for the disk") or WINDOW
        far = Folder(url, recipe.full_name())
        passing = recipe.tier == "temporary" or (not recipe.tier and not is_local(url))
        self._own = tempfile.mkdtemp(prefix="holdall.") if passing else None
        nearer = self._own or recipe.tier
        self.near = Folder(nearer, recipe.full_name()) if nearer else far
        self.far = far if nearer else None
        self.chunk = max(BLOCK, min(recipe.chunk, self.limit // 4) // BLOCK * BLOCK)
        room = BLOCK if recipe.how == "fork" else self.limit  # a child writes its own image
        self._ring = Ring(room, pinned(room))
        self._committer = Committer(self.near, self.far, ranks.twin(), recipe.keep)
        commit = self._committer
        self._flow = Flow(self._ring, self.chunk, recipe.rate, recipe.direct, commit.begin, commit.commit)
        self._owners = Owners()
        self._nonce = ranks.together(
            None, lambda said: [secrets.token_hex(NONCE // 2)] * len(said), "it opens"
        )
        self._under_way: list[Saving] = []
        self._counts: dict[str, float] = {}
        self._open = True

    def attach(self, optimizer: Any) -> Any:
        """Call `ready` before each of its steps from now on; the optimizer. What it does not own, such as statistics
        of BatchNorm, is then copied while `save` is called; all is, if hooks may step inside backward."""
        self._check()
        self._owners.add(optimizer, self._hold)
        return optimizer

    def save(self, step: int, state: Any, wait: bool = False) -> Saving:
        self._check()
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise BadInput("step", repr(step), "a whole number, 0 or more")
        self._settle()
        began, flat = time.perf_counter(), flatten(state)
        self._hold()
        now = early(flat.leaves, self._owners.memory(), self.recipe.patterns)
        leaves = ordered(flat.leaves, now)
        saving, how = Saving(step), self._how(leaves)
        plan = Plan(leaves, {"store": self.recipe.full_name(), "step": step, "tree": flat.tree})
        token = f"{step}-{self._nonce}{int(self._counts.get('saves', 0)):x}"
        job = Job(saving, plan, token, local_path(f"{self.near.data(token)}/{self._ranks.rank}.hold"))
        self._under_way.append(saving)
        self._count(saves=1)
        if how == "fork":
            self._fork(job)
        else:
            side = Side(leaves.values())
            job.settle = side.wait
            self._flow.start(job, _border(plan, now), side.copy)
        saving.blocked = time.perf_counter() - began
        self._count(blocked_seconds=saving.blocked, early_bytes=saving.early)
        if wait:
            saving.wait()
            saving.blocked = time.perf_counter() - began
        return saving

    def _how(self, leaves: Mapping[str, Any]) -> str:
        how = self.recipe.how
        if (
            how == "auto"
        ):  # a snapshot costs as much memory as the state, if training changes all of it meanwhile
            fits = sum(leaf.nbytes for leaf in leaves.values()) <= self.limit
            return "fork" if fits and not fork.why_not(leaves.values(), self.chunk) else "ring"
        reason = fork.why_not(leaves.values(), self.chunk) if how == "fork" else ""
        if reason:
            raise BadInput("how", "fork", f'"ring" or "auto": {reason}')
        return how

    def _fork(self, job: Job) -> None:
        """Where a copy of the state is more than the memory that was given, `ready` waits for the child."""
        saving = job.saving
        try:
            self._committer.begin(job)
            child = fork.Child(job, self.chunk, self.recipe.rate, self.recipe.direct)
        except BaseException as fault:  # noqa: BLE001
            job.fault = fault
            saving.written.set()
            self._flow.elsewhere(job)
            return
        if job.size <= self.limit:
            saving.copied.set()

        def watch() -> None:
            try:
                job.digest, counts = child.result()
                for name, n in counts.items():
                    self._flow.counts[name] += n
                self._flow.counts["written_bytes"] += job.size
            except BaseException as fault:  # noqa: BLE001 (it goes to the receipt)
                job.fault = fault
            saving.copied.set()
            saving.written.set()

        self._count(forks=1)
        threading.Thread(target=watch, name="holdall-child", daemon=True).start()
        self._flow.elsewhere(job)

    def ready(self) -> float:
        self._check()
        return self._hold()

    def _hold(self) -> float:
        if not self._under_way or self._under_way[-1].copied.is_set():
            return 0.0
        began = time.perf_counter()
        for saving in self._under_way:
            saving.copied.wait()
        took = time.perf_counter() - began
        self._under_way[-1].blocked += took
        self._count(ready_seconds=took, blocked_seconds=took)
        return took

    def _settle(self) -> None:
        """Forget saves that have ended; what went wrong in one is raised, once."""
        ended = [s for s in self._under_way if s.ended.is_set()]
        self._under_way = [s for s in self._under_way if not s.ended.is_set()]
        for saving in ended:
            if saving.fault is not None and not saving.told:
                raise saving.fault

    def load(self, step: int | None = None, like: Any = None) -> Any:
        self._check()
        for saving in self._under_way:
            saving.ended.wait()
        found, read = load((self.near, self.far), self._ranks, step, like, self.recipe.threads)
        self._count(loads=1, read_bytes=read)
        return found

    def steps(self) -> list[int]:
        self._check()
        return sorted({*self.near.steps(), *(self.far.steps() if self.far else ())})

    def traffic(self) -> Mapping[str, float]:
        self._check()
        ring = {"ring_waits": self._ring.waited, "ring_most_bytes": self._ring.most}
        zero = {
            "saves": 0,
            "forks": 0,
            "early_bytes": 0,
            "blocked_seconds": 0.0,
            "ready_seconds": 0.0,
            "loads": 0,
        }
        return {**zero, **self._counts, **self._flow.counts, **ring, "sent_bytes": self._committer.sent}

    def _count(self, **more: float) -> None:
        for name, value in more.items():
            self._counts[name] = self._counts.get(name, 0) + value

    def _check(self) -> None:
        if not self._open:
            raise BadInput("checkpoints", "closed", "ones that are open")

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._owners.close()
        self._flow.close()
        self._ring.close()
        del self._ring, self._flow.ring
        if self._own:
            shutil.rmtree(self._own)
        self._settle()


def _border(plan: Plan, now: set[str]) -> int:
    """How many sections are copied at once."""
    late = (i for i, s in enumerate(plan.sections) if s.name not in now and s.name[0] != "~")
    return next(late, len(plan.sections))
