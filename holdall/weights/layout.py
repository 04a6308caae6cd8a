"""Where everything of a BitStack file lies: pieces of matrices, what is kept as it is, and the order of blocks.

Sections, in file order: `file/<name>` (tokenizer, config), `keep/<i>` (norms, biases: half precision), then the
blocks "0", "1", ... in stack order, the first block of every piece before all others. So any budget is a prefix.
"""

from __future__ import annotations

import itertools
import lzma
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.packed import LazyArrays, Packed
from holdall.weights.iavd import Block, block_bytes, fitting_rank

if TYPE_CHECKING:
    import torch

    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")

_MAX_FILE = 1 << 28  # a file that claims to unfold to more is hostile
TABLE_ROWS = (
    4096  # rows of an embedding table that are cut as one: frequent tokens may be held finer than rare ones
)
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of matrix number `tensor`; `table` marks embeddings."""

    tensor: int
    start: int
    stop: int
    columns: int
    rank: int
    table: bool

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def block_bytes(self) -> int:
        return block_bytes(self.rows, self.columns, self.rank)


@dataclass(frozen=True)
class Layout:
    """tensors: (name, dtype, shape) of the whole state, in its order. stack: a piece's number for each block."""

    tensors: list[tuple[str, str, tuple[int, ...]]]
    pieces: list[Piece]
    stack: list[int]

    def packed_tensors(self) -> set[int]:
        return {p.tensor for p in self.pieces}

    def to_meta(self) -> dict[str, Any]:
        return {
            "tensors": [[n, d, list(s)] for n, d, s in self.tensors],
            "pieces": [[p.tensor, p.start, p.stop, p.rank, int(p.table)] for p in self.pieces],
            "stack": self.stack,
        }

    @classmethod
    def of(cls, packed: Packed) -> Layout:
        """Read from an artefact, distrusting it."""
        try:
            told = packed.meta
            tensors = [(str(n), str(d), tuple(s)) for n, d, s in told["tensors"]]
            for name, dtype, shape in tensors:
                if dtype not in DTYPES or any(type(v) is not int or v < 0 for v in shape):
                    raise ValueError(f"tensor {name} is {dtype} {shape}")
            pieces = [_piece(tensors, *p) for p in told["pieces"]]
            stack = list(told["stack"])
            if stack[: len(pieces)] != list(range(len(pieces))):
                raise ValueError("the first blocks do not lead the stack")
            if any(type(i) is not int or not 0 <= i < len(pieces) for i in stack):
                raise ValueError("the stack names a piece that is not there")
            if len({n for n, _, _ in tensors}) != len(tensors):
                raise ValueError("a tensor stands twice")
            _check_cover(tensors, pieces)
            return cls(tensors, pieces, stack)
        except (KeyError, TypeError, ValueError, IndexError) as fault:
            raise CorruptArtefact("the BitStack header", f"it contradicts itself ({fault})") from fault

    def block(self, arrays: dict[str, np.ndarray], at: int) -> Block:
        """Block number `at` of the stack."""
        piece = self.pieces[self.stack[at]]
        try:
            return Block.from_bytes(arrays[str(at)], piece.rows, piece.columns, piece.rank)
        except (KeyError, ValueError) as fault:
            raise CorruptArtefact(f"block {at}", str(fault)) from fault


def _piece(tensors: list[Any], tensor: int, start: int, stop: int, rank: int, table: int) -> Piece:
    if any(type(v) is not int for v in (tensor, start, stop, rank)) or tensor < 0:
        raise ValueError("a piece is not made of whole numbers")
    _, dtype, shape = tensors[tensor]
    if (
        not dtype.startswith(("float", "bfloat"))
        or len(shape) != 2
        or not 1 <= rank <= min(shape)
        or not 0 <= start < stop <= shape[0]
    ):
        raise ValueError(f"piece {start}:{stop} of a {shape} matrix, rank {rank}")
    return Piece(tensor, start, stop, shape[1], rank, bool(table))


def _check_cover(tensors: list[Any], pieces: list[Piece]) -> None:
    for tensor, group in itertools.groupby(pieces, key=lambda p: p.tensor):
        ends = [0]
        for piece in group:
            if piece.start != ends[-1]:
                raise ValueError(f"pieces of {tensors[tensor][0]} do not touch")
            ends.append(piece.stop)
        if ends[-1] != tensors[tensor][2][0]:
            raise ValueError(f"pieces of {tensors[tensor][0]} leave rows out")
    if len({p.tensor for p in pieces}) != len(list(itertools.groupby(pieces, key=lambda p: p.tensor))):
        raise ValueError("pieces of a matrix are scattered")


def plan(model: Model, rank: int | None, overhead: float, tables: bool) -> Layout:
    """Which matrices are cut into which pieces; `tables`: embeddings too."""
    embeddings = set(model.embeddings())
    linears = set(model.linears())
    if "config.json" not in model.files:  # plain tensors: any matrix that is no embedding
        linears = {n for n, t in model.state.items() if t.ndim == 2} - embeddings
    tensors, pieces = [], []
    for at, (name, tensor) in enumerate(model.state.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise BadInput(f"tensor {name}", dtype, f"one of {', '.join(DTYPES)}")
        tensors.append((name, dtype, tuple(tensor.shape)))
        wanted = name in linears or (tables and name in embeddings)
        if not wanted or tensor.ndim != 2 or not tensor.is_floating_point():
            continue
        m, n = tensor.shape
        step = TABLE_ROWS if name in embeddings else max(m, 1)
        cut = [(start, min(start + step, m)) for start in range(0, m, step)]
        new = [Piece(at, s, e, n, _rank(e - s, n, rank, overhead), name in embeddings) for s, e in cut]
        if sum(p.block_bytes for p in new) < tensor.numel():  # else half precision is as good a first block
            pieces += new
    return Layout(tensors, pieces, list(range(len(pieces))))


def depths(layout: Layout, levels: int, lead: int, room: int | None) -> list[int]:
    """How many blocks of each piece can be of use in `room` bytes; tables run `lead` ahead."""
    found = [1] * len(layout.pieces)
    for level in range(1, levels + 1):
        found = [min(level + lead, levels) if p.table else level for p in layout.pieces]
        if (
            room is not None
            and sum(d * p.block_bytes for d, p in zip(found, layout.pieces, strict=True)) >= room
        ):
            break
    return found


def _rank(m: int, n: int, rank: int | None, overhead: float) -> int:
    return fitting_rank(m, n, overhead) if rank is None else max(1, min(rank, m, n))


def kept(model: Model, layout: Layout) -> dict[str, np.ndarray]:
    """The sections before the blocks: files, and every tensor that is not cut."""
    sections = {f"file/{name}": pack_file(raw) for name, raw in sorted(model.files.items())}
    cut = layout.packed_tensors()
    for at, (name, dtype, _) in enumerate(layout.tensors):
        if at not in cut:
            tensor = model.state[name].detach().cpu()
            sections[f"keep/{at}"] = (_half(tensor) if "float" in dtype else tensor).contiguous().numpy()
    return sections


def _half(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision where it can hold the values, else float32."""
    if not tensor.isfinite().all():
        raise BadInput("weights", "NaN or infinity", "finite weights")
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor.float()


def pack_file(raw: bytes) -> np.ndarray:
    return np.frombuffer(lzma.compress(raw), np.uint8)


def expand_file(section: np.ndarray, name: str) -> bytes:
    """The file in section `file/<name>`."""
    plain = name.removeprefix("file/")
    if "/" in plain or "\\" in plain or plain in ("", ".", ".."):
        raise CorruptArtefact(name, "a file in it has a path for a name")
    try:
        unfold = lzma.LZMADecompressor()
        raw = unfold.decompress(section.tobytes(), _MAX_FILE)
    except lzma.LZMAError as fault:
        raise CorruptArtefact(name, str(fault)) from fault
    if not unfold.eof:
        raise CorruptArtefact(name, "it is cut short, or unfolds to more than any tokenizer")
    return raw


def read_kept(packed: Packed, layout: Layout) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """The uncut tensors in their own dtypes, and the files."""
    names = [n for n in packed.arrays if n.startswith(("file/", "keep/"))]
    found = packed.arrays.read(names) if isinstance(packed.arrays, LazyArrays) else packed.arrays
    files = {n.removeprefix("file/"): expand_file(found[n], n) for n in names if n.startswith("file/")}
    state = {}
    cut = layout.packed_tensors()
    for at, (name, dtype, shape) in enumerate(layout.tensors):
        if at in cut:
            continue
        array = found.get(f"keep/{at}")
        floating = "float" in dtype
        if array is None or array.shape != shape or (array.dtype.kind == "f") != floating:
            raise CorruptArtefact(f"tensor {name}", "its section does not fit its header")
        state[name] = torch.from_numpy(array.copy()).to(getattr(torch, dtype))
    return state, files
