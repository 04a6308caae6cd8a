"""An open folder of checkpoints of many ranks: states in, states out, under any layout."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdall.checkpoints import bytecheckpoint_state as states
from holdall.checkpoints.awaited import Awaited
from holdall.checkpoints.bytecheckpoint_files import Files
from holdall.checkpoints.bytecheckpoint_load import Wanted, agreed, fill
from holdall.checkpoints.bytecheckpoint_mapped import mapped
from holdall.checkpoints.bytecheckpoint_match import added, complete, matched
from holdall.checkpoints.bytecheckpoint_meta import Stored
from holdall.checkpoints.bytecheckpoint_parts import Piece
from holdall.checkpoints.bytecheckpoint_plan import Planner
from holdall.checkpoints.bytecheckpoint_ranks import Alone, Ranks
from holdall.checkpoints.bytecheckpoint_save import Writer, begin
from holdall.checkpoints.monitoring import Timeline, Watch
from holdall.checkpoints.publish import Folder
from holdall.errors import BadInput, CorruptArtefact
from holdall.kinds import Keeper, Receipt, Spend
from holdall.parts.ring import Ring

if TYPE_CHECKING:
    from holdall.checkpoints.bytecheckpoint import ByteCheckpoint

LEAST = 1 << 20  # of memory: four boxes of the smallest size
_MOST = 1 << 40


class Kept(Keeper):
    """All ranks open it, save and load together; `loaders`, `report` and `steps` are for any of them alone."""

    def __init__(self, recipe: ByteCheckpoint, url: str, memory: Spend, ranks: Ranks):
        self.recipe, self._ranks = recipe, ranks
        self._limit = recipe.allowed(memory, LEAST, "boxes wait in it")
        self._part = min(recipe.part, (self._limit or _MOST) // 4)
        self._folder = Folder(url, recipe.full_name())
        self._ring: Ring | None = None
        self._planner = Planner(ranks, self._part, recipe.split, recipe.plans)
        self._writer = Writer(self._folder, ranks.twin(), lambda: self._room(0), recipe.keep)
        self._last: Awaited | None = None
        self._begun: list[Awaited] = []
        self._open, self._counts = True, dict[str, float]()
        self._loaded: Timeline | None = None

    def save(self, step: int, state: Any, wait: bool = False) -> Receipt:
        """As every keeper; the state may change as soon as this returns, since all of it is copied by then."""
        self._check()
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise BadInput("step", step, "a whole number, 0 or more")
        self._tell()
        began, saving = time.perf_counter(), Awaited(step)
        taken = states.take(state, self._ranks.rank)
        try:
            job = begin(taken, self._planner, self._room, self._writer, saving)
        except BaseException:
            saving.told = True
            raise
        finally:
            self._begun.append(saving)
            self._last = saving  # only now: a larger ring waits for the save before this one
        saving.blocked = time.perf_counter() - began
        self._count(saves=1, copied_bytes=job.share.nbytes, blocked_seconds=saving.blocked)
        if wait:
            saving.wait()
            saving.blocked = time.perf_counter() - began
        return saving

    def _tell(self) -> None:
        """Raise what went wrong with a save, if nobody was told."""
        for saving in self._begun:
            if saving.fault is not None and not saving.told:
                saving.told = True
                raise saving.fault
        self._begun = [s for s in self._begun if not s.ended.is_set()]

    def _room(self, nbytes: int) -> Ring:
        """The ring: as large as the memory allows, or as one save wants where it is not limited."""
        wanted = self._limit or max(nbytes, LEAST)
        if self._ring is None or self._ring.capacity < wanted:
            if self._ring is not None:
                self._finish()  # what is in the old one is written first
            self._ring = None
            self._ring = Ring(wanted)
        return self._ring

    def ready(self) -> float:
        self._check()
        return 0.0

    def _finish(self) -> None:
        if self._last is not None:
            self._last.ended.wait()

    def load(self, step: int | None = None, like: Any = None, missing: str | None = None) -> Any:
        """As every keeper. missing: what to do with names that only one of checkpoint and `like` has; by default as
        the method says."""
        self._check()
        self._finish()
        watch = Watch()
        stored, folder, shared = self._stored(step)
        with Files(folder) as files:
            if like is None:
                found = self._whole(stored, shared, files, watch)
            else:
                found = self._into(like, stored, shared, files, watch, missing or self.recipe.missing)
            self._count(loads=1, read_bytes=files.traffic)
        phases = self._ranks.together(watch.told(), lambda said: [said] * len(said), "it ends a load")
        self._loaded = Timeline("load", stored.step, phases)
        return found

    def _stored(self, step: int | None) -> tuple[Stored, str, list[Any]]:
        """Contents and shared trees of a checkpoint, which rank 0 reads for all."""

        def read(said: Sequence[Any]) -> list[Any]:
            if len(set(map(str, said))) > 1:
                raise BadInput("step", str(said), "the same on all ranks")
            told, folder = self._folder.read(self._folder.chosen(step))
            with Files(folder) as files:
                shared = Stored.of(told, self._folder.url).shared(files)
                self._count(read_bytes=files.traffic)
            return [[told, folder, shared]] * len(said)

        told, folder, shared = self._ranks.together(step, read, "it looks for a checkpoint")
        return Stored.of(told, self._folder.url), folder, shared

    def _whole(self, stored: Stored, shared: list[Any], files: Files, watch: Watch) -> Any:
        """Every tensor whole, on every rank."""
        fault, trees, made = None, [], dict[str, Any]()
        parts: dict[str, list[Piece]] = {}
        try:
            trees = states.together(shared + stored.own(files, self._ranks.rank))
            if self._ranks.world == 1:
                made = mapped(stored.entries, stored.basics, files.folder, self.recipe.threads, watch)
                self._count(read_bytes=sum(t.nbytes for t in made.values()))
            for name in dict.fromkeys(n for _, node in trees for n in states.named(node)):
                real = stored.alias.get(name, name)
                if real not in made:
                    made[real] = states.empty(stored.basics[real])
                    parts[real] = [Piece(made[real], made[real].shape)]
            wanted = Wanted(stored.entries, parts)
        except (CorruptArtefact, OSError, KeyError) as failed:
            fault, wanted = failed, Wanted([], {})
        agreed(fault, self._ranks)
        self._fill(wanted, files, watch)
        state = {key: states.built(node, lambda n: made[stored.alias.get(n, n)]) for key, node in trees}
        return state[""] if state.keys() == {""} else state

    def _into(
        self, like: Any, stored: Stored, shared: list[Any], files: Files, watch: Watch, missing: str
    ) -> Any:
        """Into the tensors of `like`; nothing is changed unless all of it fits, on all ranks."""
        fault: Exception | None = None
        trees, names, wanted, made = list[Any](), list[str](), Wanted([], {}), dict[str, Any]()
        top = like if isinstance(like, dict) else {"": like}
        try:
            taken = states.take(like, self._ranks.rank)
            trees = states.together(shared + stored.own(files, self._ranks.rank))
            parts, names = matched(taken, stored, missing)
            if missing == "strict" and taken.whole():
                made = added(top, trees, stored, parts)
                names += made
            wanted = Wanted(stored.entries, parts)
        except (BadInput, CorruptArtefact, OSError) as failed:
            fault = failed
        complete(fault, names, trees, missing, self._ranks)
        self._fill(wanted, files, watch)
        for key, node in trees:
            if key in top and (missing != "model" or states.kind(str(key)) == "model"):
                fresh = states.refreshed(top[key], node, made)
                if not isinstance(like, dict):
                    return fresh
                like[key] = fresh
        return like

    def _fill(self, wanted: Wanted, files: Files, watch: Watch) -> None:
        recipe = self.recipe
        window = max((self._limit or 64 << 20) // 2, self._part)
        fill(wanted, self._ranks, files, watch, recipe.threads, window, recipe.waste, recipe.once)

    def loaders(self, step: int | None = None) -> list[Any]:
        """What every rank had under its key "loader", for `PackingLoader.restore`."""
        self._check()
        stored, folder, _ = self._stored(step)
        found = []
        with Files(folder) as files:
            for owner in stored.owners.get("loader", []):
                tree = states.together([stored.tree(files, "loader", owner)])
                made = {n: states.empty(stored.basics[n]) for _, node in tree for n in states.named(node)}
                parts = {n: [Piece(t, t.shape)] for n, t in made.items()}
                recipe = self.recipe
                wanted = Wanted(stored.entries, parts)
                fill(wanted, Alone(), files, Watch(), recipe.threads, 64 << 20, recipe.waste, True)
                found.append(states.built(tree[0][1], made.__getitem__))
        return found

    def report(self, what: str = "save", step: int | None = None) -> Timeline:
        """Phases of all ranks: of a save (by default the newest there is; any rank, any process), or of the last
        load of this keeper."""
        if what == "load":
            if self._loaded is None:
                raise BadInput("report", "none", "a load before it")
            return self._loaded
        told, _ = self._folder.read(self._folder.chosen(step))
        return Timeline("save", int(told["step"]), told["phases"])

    def steps(self) -> list[int]:
        self._check()
        return self._folder.steps()

    def traffic(self) -> Mapping[str, float]:
        self._check()
        cache = self._planner.cache
        plans = {"plans_made": cache.misses, "plans_reused": cache.hits}
        waits = self._ring.waited if self._ring is not None else 0
        return {**self._counts, **plans, "written_bytes": self._writer.written, "ring_waits": waits}

    def _count(self, **more: float) -> None:
        for name, value in more.items():
            self._counts[name] = self._counts.get(name, 0) + value

    def _check(self) -> None:
        if not self._open:
            raise BadInput("checkpoints", "closed", "ones that are open")

    def close(self) -> None:
        if self._open:
            self._open = False
            self._writer.close()
            self._ring = None
            self._tell()
