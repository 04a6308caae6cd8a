"""Kinds: what every method of a sort promises. A room declares one to three of them in its `base.py`.

Longer than other files: each kind is a page of promises and nothing else, and who adds one should see its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.method import Method

if TYPE_CHECKING:
    from holdall.packed import Packed
    from holdall.report import Report

Spend = Budget | str | int | float | None  # what a user may write for a budget


@dataclass(frozen=True, kw_only=True)
class Codec(Method):
    """Packs a thing into bytes and gives it back, exactly (`lossless`) or nearly.

    A room's base also says how its thing is read from a file and written back, so that `holdall.pack` and the
    command line need to know nothing about rooms.
    """

    kind: ClassVar[str] = "codec"
    lossless: ClassVar[bool] = False
    usual: ClassVar[bool] = False  # what its room packs with where no method is named

    @abstractmethod
    def encode(self, x: Any, budget: Spend = None, *, to: str | None = None) -> Packed:
        """Pack `x` within the budget, or raise BudgetError with the least that would do.

        to: a path or URL; the artefact is then written there (streaming, where the method can) and comes back
        lazily opened.
        """

    @abstractmethod
    def decode(self, packed: Packed) -> Any:
        """What was packed."""

    def restore(self, packed: Packed, to: str, form: str | None = None) -> None:
        """Write what was packed to a file; whole or not at all.

        form: which kind of that file, where the room has several (`holdall unpack --gguf`).
        """
        if form is not None:
            raise BadInput("--gguf", form, f"a .gguf file of a packed model, not {to}")
        self.write_output(self.decode(packed), to)

    @classmethod
    def sniff(cls, url: str, head: bytes) -> bool:
        """Whether a file of this name that starts with `head` (up to 64 kB) belongs into this room."""
        return False

    @classmethod
    def read_input(cls, url: str) -> Any:
        """The room's thing, from a file."""
        raise TypeError(f"{cls.full_name()} does not read files")

    @classmethod
    def with_text(cls, x: Any, text: str) -> Any:
        """The same thing, with a text to calibrate on."""
        raise BadInput("calibration text", "one", f"none: {cls.full_name()} does not calibrate on text")

    @classmethod
    def write_output(cls, x: Any, url: str) -> None:
        """The room's thing, back into a file; whole or not at all."""
        raise TypeError(f"{cls.full_name()} does not write files")


@dataclass(frozen=True, kw_only=True)
class Selector(Method):
    """Keeps the items of a thing that matter. A method writes `score`, and may write `merge`.

    The thing, `x`, has `count` (items to choose from in each row), `each` (bytes of one item, all rows
    together), `elements` (numbers in one item), `shape` (of the scores) and `take(kept)`.
    """

    kind: ClassVar[str] = "selector"

    @abstractmethod
    def score(self, x: Any) -> Any:
        """[..., count], higher = keep; +inf = always, -inf = never while there is another."""

    def merge(self, x: Any, kept: Any) -> Any:
        """`x.take(kept)`, with what was dropped folded into it where the method does that."""
        return x.take(kept)

    def least(self, x: Any) -> int:
        """The fewest items a row that the method can work with."""
        return 1

    @abstractmethod
    def select(self, x: Any, budget: Spend = None) -> Any:
        """A smaller `x`, in the same order, that shares no memory with the large one."""


class Session(ABC):
    """What a runtime opened: it works step by step within its budget, and holds memory until it is closed."""

    @abstractmethod
    def step(self, x: Any) -> Any:
        """One step of work. BudgetError where it does not fit; the session is then as it was before the step."""

    @abstractmethod
    def traffic(self) -> Mapping[str, float]:
        """What went by so far, counted: calls, pages, bytes; names that end in "seconds" are times."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a second call does nothing, and any other use afterwards raises BadInput."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _k: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Runtime(Method):
    """Does work on something too large for the memory there is, a step at a time, within a budget of memory.

    The recipe stays as it is; what is opened is a `Session`. Knobs that only move speed or traffic are declared with
    `knob(..., changes="traffic")`: results are then the same and `traffic()` is not.
    """

    kind: ClassVar[str] = "runtime"
    doors: ClassVar[
        tuple[str, ...]
    ] = ()  # functions that bring pages in; the checks make their n-th call fail
    changes_artefact: ClassVar[bool] = False  # training does: checks that compare runs rehearse each anew

    @abstractmethod
    def open(self, artefact: Any, budget: Spend = None) -> Session:
        """A session that never holds more than the budget, or BudgetError with the least that would do."""

    @abstractmethod
    def whole(self, artefact: Any) -> int:
        """Bytes that would be held without this runtime: what a share is a share of."""

    @classmethod
    @abstractmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any]]:
        """A small artefact and the inputs of a short run (some tens of megabytes, under a second), for the checks."""


@dataclass(frozen=True)
class Trained:
    """What training gave. model: ready for inference. packed: all that has to be kept of it. report: measured."""

    model: Any
    packed: Packed
    report: Report


@dataclass(frozen=True, kw_only=True)
class Trainer(Method):
    """Trains a copy of a torch module so that what has to be kept of it fits the budget.

    data: batches, iterable as often as wanted: pairs (inputs, targets), or dicts that the module takes as named
    arguments and answers with a `.loss`. Budgets count the packed file; a share is of the bytes that the module's
    parameters have as they were given, bits are per parameter.
    """

    kind: ClassVar[str] = "trainer"

    @abstractmethod
    def fit(
        self,
        model: Any,
        data: Iterable[Any],
        budget: Spend = None,
        *,
        loss: Callable[[Any, Any], Any] | None = None,
        seed: int = 0,
    ) -> Trained:
        """Train, or raise BudgetError with the least that would do before any training.

        loss: (module, batch) -> scalar; by default cross-entropy where targets are whole numbers, squared error
        where they are not, and the module's own `.loss` where a batch is a dict.
        """

    @abstractmethod
    def load(self, packed: Packed, like: Any) -> Any:
        """A copy of the module `like` (as `fit` was given it, trained or not) with what was packed in it."""

    @classmethod
    @abstractmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """A small module, its training batches and held-out ones (real data, a few seconds to fit), for the checks."""


@dataclass(frozen=True)
class Hits:
    """What a search found, the nearest first.

    ids [Q, k]: the user's own, whole numbers or strings; distances float32 [Q, k], rising. Where fewer than k were
    found a row ends in distances of infinity, beside ids of -1 or "".
    """

    ids: Any
    distances: Any


class Searcher(ABC):
    """An open index: it answers, takes more and forgets, within the memory it was given, until it is closed."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Vectors that can be found."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that it holds in memory, all tables included; what it reads from disk passes by."""

    @abstractmethod
    def search(self, queries: Any, k: int = 10, where: Any = None, recall: float | None = None) -> Hits:
        """The k nearest of each query. where: ids, or a condition on attributes; nothing else is ever found. recall:
        the share of the nearest to find, as it was measured; BadInput where none was. 1 looks at everything."""

    @abstractmethod
    def add(self, vectors: Any, ids: Any = None) -> None:
        """Take more; BadInput for ids that are there. All or nothing, on disk too."""

    @abstractmethod
    def remove(self, ids: Any) -> int:
        """Forget some; how many of them were there."""

    @abstractmethod
    def traffic(self) -> Mapping[str, float]:
        """What searches cost so far, counted: queries, reads, bytes read, distances computed."""

    @abstractmethod
    def save(self, url: str) -> None:
        """Write the index to a new folder: whole or not at all."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _k: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Index(Method):
    """Makes things findable by what they are near to, within a budget of memory that searching may hold."""

    kind: ClassVar[str] = "index"
    exact: ClassVar[bool] = False  # whether it finds all that exact search finds
    estimates: ClassVar[bool] = False  # whether the distances that it tells are estimates

    @abstractmethod
    def build(
        self, vectors: Any, budget: Spend = None, ids: Any = None, *, to: str | None = None
    ) -> Searcher:
        """An open index, or BudgetError with the least that would do.

        ids: the user's own, whole numbers or strings, each once; None counts from 0. to: a folder that the index is
        written to and opened from; None keeps it in memory, or in a temporary folder where it works from disk.
        """

    @abstractmethod
    def open(self, url: str, memory: Spend = None) -> Searcher:
        """A written index, in no more memory than that; None: what it was built for."""


class Receipt(ABC):
    """Of one save. `blocked`: seconds that the caller was held up, waits before an update included."""

    step: int
    blocked: float

    @abstractmethod
    def wait(self, timeout: float | None = None) -> int:
        """Until it is durable: bytes that were written. What went wrong is raised here, or by the next save,
        or by closing: to whoever comes first."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether it is durable: another process, or this one after a power cut, would load it."""


class Keeper(ABC):
    """An open folder of checkpoints. Each is there whole or not at all; the newest whole one stays until another is.

    A state is what torch calls one: dicts and lists of tensors, numbers, strings and None, nested. Nothing is pickled.
    """

    @abstractmethod
    def save(self, step: int, state: Any, wait: bool = False) -> Receipt:
        """Keep the state as it is now. Unless `wait`, it goes on in the background: call `ready` before changing it."""

    @abstractmethod
    def ready(self) -> float:
        """Hold the caller until the state that was given to `save` may change: the seconds that it took."""

    @abstractmethod
    def load(self, step: int | None = None, like: Any = None) -> Any:
        """A state, by default the newest. like: a state whose tensors are filled in place (their shapes and types are
        compared first) and which is given back."""

    @abstractmethod
    def steps(self) -> list[int]:
        """Of the checkpoints that are whole, rising."""

    @abstractmethod
    def traffic(self) -> Mapping[str, float]:
        """What was copied, written and waited for so far."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is under way and give everything back, then raise what went wrong with a save, if nobody was
        told yet; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _k: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Store(Method):
    """Keeps states of training, safe against a kill at any moment. Budgets count memory beside the state itself."""

    kind: ClassVar[str] = "store"

    @abstractmethod
    def open(self, url: str, memory: Spend = None) -> Keeper:
        """A folder of checkpoints, new or not; BudgetError with the least memory that would do."""

    def save(self, state: Any, url: str, wait: bool = True, step: int = 0) -> Receipt:
        with self.open(url) as keeper:
            return keeper.save(step, state, wait)

    def load(self, url: str, like: Any = None) -> Any:
        with self.open(url) as keeper:
            return keeper.load(like=like)
