"""fp32 parameters and moments on disk, each piece in two places: a step writes the one that does not count, and a
record that is written last says which one does. A process that is killed finds the last whole step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.parts.paging import BLOCK, Arena, aligned, buffer
from holdall.training.fuyou_groups import Group, Piece

torch = lazy("torch", extra="training")
_FORMAT = 1


class States:
    """The states of all groups in an arena. kept: the file outlives the process, so that records are written."""

    def __init__(self, groups: list[Group], size: int, arena: Arena, kept: bool):
        self.groups, self.arena, self.kept, self.step = groups, arena, kept, 0
        params = sum(len(g.params) for g in groups)
        pieces = sum(-(-g.count // max(size // 1024, 1) // 1024) + 1 for g in groups)
        self._records = [arena.place(aligned(256 + 24 * params + 40 * pieces + BLOCK)) for _ in range(2)]
        self._sums: dict[tuple[Piece, int], str] = {}  # of what was written last to each place
        found = self._newest() if kept else None
        self.size = found["piece"] if found else size
        for group in groups:
            group.cut(self.size)
            for piece in group.pieces:
                piece.spans = [arena.place(3 * piece.section) for _ in range(2)]
        self.resumed = found is not None
        if found:
            self._take(found)

    def all(self) -> Iterable[Piece]:
        return (piece for group in self.groups for piece in group.pieces)

    def begin(self, optimizer: Any) -> None:
        """Write parameters, and moments where the optimizer has some, as the state that counts."""
        held = buffer(3 * max((p.section for p in self.all()), default=0))
        for group in self.groups:
            states = [optimizer.state.get(p, {}) for p in group.params]
            group.t = [int(s["step"]) if "step" in s else 0 for s in states]
            for piece in group.pieces:
                out = piece.sections(held)
                for n, a, b, at in piece.parts:
                    moments = (states[n].get("exp_avg"), states[n].get("exp_avg_sq"))
                    for section, x in zip(out, (group.params[n], *moments), strict=True):
                        here = torch.from_numpy(section[at : at + b - a])
                        here.zero_() if x is None else here.copy_(x.detach().view(-1)[a:b])
                self._write(piece, held, group.slot).result()
        self.record()

    def read(self, piece: Piece, held: np.ndarray, first: int = 0, count: int = 3) -> Future[int]:
        """Sections `first` on of what counts, into the same places of a buffer."""
        a, b = first * piece.section, (first + count) * piece.section
        return self.arena.read(piece.spans[piece.group.slot], held[a:b], at=a)

    def write(self, piece: Piece, held: np.ndarray) -> Future[int]:
        """All three sections to the other place, where they count after `commit`."""
        return self._write(piece, held, 1 - piece.group.slot)

    def _write(self, piece: Piece, held: np.ndarray, slot: int) -> Future[int]:
        if self.kept:
            self._sums[piece, slot] = _sum(piece, held)
        return self.arena.write(piece.spans[slot], held[: 3 * piece.section])

    def commit(self, changed: dict[Group, list[int]], step: int) -> None:
        """What was written of these groups counts from now on. Their writes have to be done."""
        for group, t in changed.items():
            group.slot, group.t = 1 - group.slot, t
        self.step = step
        self.record()

    def record(self) -> None:
        if not self.kept:
            return
        told = {
            "format": _FORMAT, "step": self.step, "piece": self.size,
            "shapes": [[list(p.shape), str(p.dtype)] for g in self.groups for p in g.params],
            "slots": [g.slot for g in self.groups], "t": [g.t for g in self.groups],
            "sums": [self._sums[p, p.group.slot] for p in self.all()],
        }  # fmt: skip
        text = json.dumps(told).encode()
        span = self._records[self.step % 2]
        raw = b"%016x%016x" % (xxhash.xxh3_64_intdigest(text), len(text)) + text
        if len(raw) > span.room:
            raise BadInput("parameters", len(raw), f"a record of at most {span.room} bytes")
        self.arena.sync()  # first what it speaks of, then the record itself
        self.arena.write(span, raw).result()
        self.arena.sync()

    def restore(self, groups: Iterable[Group]) -> None:
        """Parameters of these groups as they count, into memory."""
        for group in groups:
            whole = np.empty(group.count, np.float32)
            for waiting in self.parameters(group, whole):
                waiting.result()
            fill(group, whole)

    def parameters(self, group: Group, whole: np.ndarray) -> list[Future[int]]:
        """Read a group's parameters into fp32 [count]."""
        spans = [(p.spans[group.slot], whole[p.start : p.stop]) for p in group.pieces]
        return [self.arena.read(span, out) for span, out in spans]

    def pulled(self) -> dict[Any, dict[str, Any]]:
        """The states as torch's AdamW holds them: all of them in memory."""
        held = buffer(3 * max((p.section for p in self.all()), default=0))
        found: dict[Any, dict[str, Any]] = {}
        for group in self.groups:
            kinds = [torch.float32 if p.dtype == torch.float32 else p.dtype for p in group.params]
            for p, t, kind in zip(group.params, group.t, kinds, strict=True):
                if t:
                    moments = {k: torch.zeros(p.shape, dtype=kind) for k in ("exp_avg", "exp_avg_sq")}
                    found[p] = {"step": torch.tensor(float(t)), **moments}
            for piece in group.pieces:
                self.read(piece, held).result()
                for n, a, b, at in piece.parts:
                    for name, section in zip(
                        ("exp_avg", "exp_avg_sq"), piece.sections(held)[1:], strict=True
                    ):
                        if group.params[n] in found:
                            whole = found[group.params[n]][name].view(-1)
                            whole[a:b] = torch.from_numpy(section[at : at + b - a])
        return found

    def _newest(self) -> dict[str, Any] | None:
        """The newest record that is whole; None where the file is new."""
        if not self.arena.file_bytes:
            return None
        found = []
        for span in self._records:
            held = buffer(span.room)
            if self.arena.file_bytes < span.start + span.room:
                continue
            self.arena.read(span, held).result()
            head = bytes(held[:32])
            try:
                digest, size = int(head[:16], 16), int(head[16:], 16)
            except ValueError:
                continue  # never written, or torn: the other one counts
            text = bytes(held[32 : 32 + size])
            if xxhash.xxh3_64_intdigest(text) == digest:
                found.append(json.loads(text))
        if not found:
            raise CorruptArtefact(self.arena.path, "no record of a whole step in it")
        return max(found, key=lambda told: told["step"])

    def _take(self, told: dict[str, Any]) -> None:
        """Go on from a record: parameters come from the file, and every byte of what counts is compared."""
        shapes = [[list(p.shape), str(p.dtype)] for g in self.groups for p in g.params]
        if told["format"] != _FORMAT or told["shapes"] != shapes:
            raise BadInput("folder", self.arena.path, "the states of this model, in this version's format")
        self.step, sums = told["step"], iter(told["sums"])
        for group, slot, t in zip(self.groups, told["slots"], told["t"], strict=True):
            group.slot, group.t = slot, t
        held = buffer(3 * max((p.section for p in self.all()), default=0))
        for piece in self.all():
            self.read(piece, held).result()
            self._sums[piece, piece.group.slot] = _sum(piece, held)
            if self._sums[piece, piece.group.slot] != next(sums):
                raise CorruptArtefact(self.arena.path, f"states of step {self.step} are not what was written")
        self.restore(self.groups)


def _sum(piece: Piece, held: np.ndarray) -> str:
    digest = xxhash.xxh3_64()
    for section in piece.sections(held):
        digest.update(section.data)
    return digest.hexdigest()


def fill(group: Group, whole: np.ndarray) -> None:
    """Copy fp32 [count] into the parameters."""
    at = 0
    with torch.no_grad():
        for p, n in zip(group.params, group.sizes, strict=True):
            p.data.view(-1).copy_(torch.from_numpy(whole[at : at + n]))
            at += n
