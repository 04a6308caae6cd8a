"""A data loader that resumes exactly, also on more or fewer data ranks: no sample is lost, none is read twice.

Documents are read in a shuffled order that seed and epoch determine, and packed into rows of equal length. What a rank
has read and not yet given out (its token buffers) is state, as is where each of its workers stands. When the number
of workers changes, buffers go to the new workers so that each has about as many tokens, and what is left to read is
dealt again: behind the place that all have passed one by one, from there on in strides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


class Batch(NamedTuple):
    """tokens int64 [batch, length]; parts: (epoch, document, tokens of it) that they are made of, in order."""

    tokens: np.ndarray
    parts: list[tuple[int, int, int]]


class Chunk(NamedTuple):
    """Tokens that were read and not yet given out."""

    epoch: int
    document: int
    tokens: np.ndarray


@dataclass
class Span:
    """What is left to read of an epoch's order: some places one by one, then every `step`-th from `start`."""

    epoch: int
    loose: list[int]
    start: int
    step: int

    def next(self, count: int) -> int | None:
        if self.loose:
            return self.loose.pop(0)
        if self.start >= count:
            return None
        self.start += self.step
        return self.start - self.step


@dataclass
class Worker:
    """One of `of` workers of all ranks: what it has to read, first to last, and what it holds."""

    index: int
    of: int
    spans: list[Span] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.spans:
            self.spans = [Span(0, [], self.index, self.of)]

    @property
    def held(self) -> int:
        return sum(len(c.tokens) for c in self.chunks)

    def state(self) -> dict[str, Any]:
        tokens = [np.asarray(c.tokens, np.int64) for c in self.chunks]
        return {
            "index": self.index,
            "of": self.of,
            "spans": [[s.epoch, list(s.loose), s.start, s.step] for s in self.spans],
            "chunks": [[c.epoch, c.document, len(c.tokens)] for c in self.chunks],
            "tokens": torch.from_numpy(np.concatenate([*tokens, np.empty(0, np.int64)])),
        }

    @classmethod
    def restored(cls, told: Any) -> Worker:
        chunks, at, tokens = [], 0, told["tokens"].numpy().copy()
        for epoch, document, n in told["chunks"]:
            chunks.append(Chunk(epoch, document, tokens[at : at + n]))
            at += n
        spans = [Span(e, list(loose), start, step) for e, loose, start, step in told["spans"]]
        return cls(told["index"], told["of"], spans, chunks)


class PackingLoader:
    """Batches of rows of `length` tokens, for ever; rank `rank` of `ranks` gets its own share of the documents.

    source: documents, a sequence of vectors of tokens. `state()` goes into a checkpoint; `restore` takes the states of
    all ranks that saved one (`keeper.loaders()`), whatever their number.
    """

    def __init__(
        self, source: Sequence[Any], length: int, batch: int = 1, rank: int = 0, ranks: int = 1, workers: int = 1,
        seed: int = 0,
    ):  # fmt: skip
        if min(len(source), length, batch, workers) < 1 or not 0 <= rank < ranks:
            got = f"{len(source)} documents, length {length}, batch {batch}, rank {rank} of {ranks}, {workers} workers"
            raise BadInput("loader", got, "one at least of each, and a rank below their number")
        self._source, self._length, self._batch = source, length, batch
        self.rank, self.ranks, self._seed, self._turn = rank, ranks, seed, 0
        of = ranks * workers
        self._workers = [Worker(rank * workers + w, of) for w in range(workers)]
        self._orders: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        worker = self._workers[self._turn % len(self._workers)]
        rows, parts = [], []
        for _ in range(self._batch):
            row, left = [], self._length
            while left:
                if not worker.chunks:
                    worker.chunks.append(self._read(worker))
                chunk = worker.chunks.pop(0)
                row.append(chunk.tokens[:left])
                parts.append((chunk.epoch, chunk.document, len(row[-1])))
                if len(chunk.tokens) > left:
                    worker.chunks.insert(0, chunk._replace(tokens=chunk.tokens[left:]))
                left -= len(row[-1])
            rows.append(np.concatenate(row).astype(np.int64))
        self._turn += 1
        return Batch(np.stack(rows), parts)

    def _read(self, worker: Worker) -> Chunk:
        empty = 0  # epochs in which there was nothing for this worker
        while empty < 100:
            span = worker.spans[0]
            at = span.next(len(self._source))
            if at is None:
                worker.spans.pop(0)
                if not worker.spans:
                    worker.spans.append(Span(span.epoch + 1, [], worker.index, worker.of))
                empty += 1
                continue
            document = int(self._order(span.epoch)[at])
            tokens = np.asarray(self._source[document])
            if len(tokens):
                return Chunk(span.epoch, document, tokens)
        raise BadInput(
            "documents", str(len(self._source)), f"one with tokens for each of {worker.of} workers"
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self._seed, epoch])
            self._orders = {epoch: rng.permutation(len(self._source))}
        return self._orders[epoch]

    def state(self) -> dict[str, Any]:
        """As of the batches that were given out; also what a checkpoint keeps under the key "loader"."""
        return {
            "documents": len(self._source),
            "seed": self._seed,
            "rank": self.rank,
            "turn": self._turn,
            "workers": [w.state() for w in self._workers],
        }

    def restore(self, states: Sequence[Any]) -> None:
        """Go on where all ranks together stood. As many workers as then: each goes on with exactly its own."""
        found = {s["rank"]: s for s in states}
        old = [Worker.restored(w) for _, s in sorted(found.items()) for w in s["workers"]]
        wrong = {s["documents"] for s in states} != {len(self._source)} or {s["seed"] for s in states} != {
            self._seed
        }
        if wrong or sorted(w.index for w in old) != list(range(old[0].of)):
            got = f"ranks {sorted(found)}, {[s['documents'] for s in states]} documents"
            wanted = f"all ranks' states, of {len(self._source)} documents and seed {self._seed}"
            raise BadInput("loader's states", got, wanted)
        of, each = self.ranks * len(self._workers), len(self._workers)
        same = of == len(old) and len(found) == self.ranks
        dealt = old if same else redeal(old, of, len(self._source))
        self._workers = dealt[self.rank * each : (self.rank + 1) * each]
        self._turn = found[self.rank]["turn"] if same else 0


def redeal(old: Sequence[Worker], of: int, count: int) -> list[Worker]:
    """What `old` workers have to read and hold, among `of` new ones."""
    new = [Worker(i, of) for i in range(of)]
    for worker in new:
        worker.spans = []
    for epoch in range(min(w.spans[0].epoch for w in old), 1 + max(w.spans[-1].epoch for w in old)):
        left = [s for w in old for s in _left(w, epoch)]
        front = min(max(s.start for s in left), count) if len(left) == len(old) else count
        loose = sorted(p for s in left for p in (*s.loose, *range(s.start, front, s.step)))
        while loose and loose[-1] == front - 1:
            front = loose.pop()
        for i, worker in enumerate(new):
            worker.spans.append(Span(epoch, loose[i::of], front + i, of))
    chunks = sorted((c for w in old for c in w.chunks), key=lambda c: -len(c.tokens))
    for chunk in chunks:
        min(new, key=lambda w: (w.held, w.index)).chunks.append(chunk)
    return new


def _left(worker: Worker, epoch: int) -> list[Span]:
    """Of an epoch: what is under way or queued; all of its stride, where it has not come to it; or nothing."""
    if epoch > worker.spans[-1].epoch:
        return [Span(epoch, [], worker.index, worker.of)]
    return [s for s in worker.spans if s.epoch == epoch]
