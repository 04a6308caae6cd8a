"""PLY: a header in words, then rows of numbers. The files that training writes, and the layout of compressed ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats.values import channels_first, channels_last, logits, with_first
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.files import Reader

_HEADER = 64 << 10  # bytes in which the header must end
_ROWS = 8 << 10  # read and written at a time
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_NEEDED = {
    "means": ("x", "y", "z"),
    "scales": ("scale_0", "scale_1", "scale_2"),
    "quats": ("rot_0", "rot_1", "rot_2", "rot_3"),
    "opacities": ("opacity",),
    "sh": ("f_dc_0", "f_dc_1", "f_dc_2"),
}


@dataclass(frozen=True)
class Element:
    """Rows of one sort. start: of its first byte in the file; row: None where rows have lists and no fixed length."""

    name: str
    count: int
    start: int
    row: np.dtype[Any] | None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.row.names if self.row is not None else None) or ()

    def rows(self, file: Reader, first: int, last: int) -> NDArray[Any]:
        assert self.row is not None
        size = self.row.itemsize
        return np.frombuffer(file.read(self.start + first * size, self.start + last * size), self.row)


def elements(file: Reader) -> dict[str, Element]:
    """What the header tells, if the file is long enough for it."""
    head = file.read(0, min(file.size, _HEADER))
    text, mark, rest = head.partition(b"end_header")
    if not mark or b"\n" not in rest[:2]:
        raise CorruptArtefact(file.name, "its PLY header has no end")
    start = len(text) + len(mark) + rest.index(b"\n") + 1
    order, told = _told(text, file.name)
    found: dict[str, Element] = {}
    for name, count, properties in told:
        row = (
            None
            if None in dict(properties).values()
            else np.dtype([(p, f"{order}{t}") for p, t in properties])
        )
        found[name] = Element(name, count, start, row)
        if row is None:  # where it ends, and so where the next begins, is not known
            break
        start += count * row.itemsize
        if start > file.size:
            raise CorruptArtefact(
                file.name, f"{count:,} of {name!r} need {start:,} bytes, and the file has {file.size:,}"
            )
    return found


def _told(text: bytes, where: str) -> tuple[str, list[tuple[str, int, list[tuple[str, str | None]]]]]:
    """(byte order, [(element, rows, [(property, type, or None for a list)])])."""
    order = ""
    told: list[tuple[str, int, list[tuple[str, str | None]]]] = []
    for line in text.decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", form, _]:
                order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form, "")
                if not order:
                    raise BadInput("PLY", f"{where}, which is {form}", "a binary one: save it as binary")
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 20:
                if name in [n for n, _, _ in told]:
                    raise CorruptArtefact(where, f"its PLY header has {name!r} twice")
                told.append((name, int(count), []))
            case ["property", "list", _, _, name] if told:
                told[-1][2].append((name, None))
            case ["property", kind, name] if told and kind in _TYPES:
                if name in dict(told[-1][2]):
                    raise CorruptArtefact(where, f"its PLY header has the property {name!r} twice")
                told[-1][2].append((name, _TYPES[kind]))
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise CorruptArtefact(where, f"its PLY header has the line {line[:80]!r}")
    if not order:
        raise CorruptArtefact(where, "its PLY header names no format")
    return order, told


def read(file: Reader, parts: dict[str, Element]) -> Scene:
    """A scene as training writes it, in blocks of rows."""
    vertex = parts.get("vertex")
    if vertex is None or vertex.row is None:
        raise BadInput("PLY", f"{file.name}, without vertices of fixed length", "a scene of 3D Gaussians")
    missing = [p for names in _NEEDED.values() for p in names if p not in vertex.names]
    if missing:
        raise BadInput("PLY", f"{file.name}, whose vertices have no {', '.join(missing)}", "3D Gaussians")
    rest = rest_names(vertex.names, file.name)
    n, k = vertex.count, 1 + len(rest) // 3
    shapes = {"means": (n, 3), "scales": (n, 3), "quats": (n, 4), "opacities": (n, 1), "sh": (n, k, 3)}
    arrays: dict[str, Any] = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for first in range(0, n, _ROWS):
        block = vertex.rows(file, first, min(n, first + _ROWS))
        at = slice(first, first + len(block))
        for name in ("means", "scales", "quats", "opacities"):
            arrays[name][at] = columns(block, _NEEDED[name])
        arrays["sh"][at] = with_first(columns(block, _NEEDED["sh"]), channels_last(columns(block, rest)))
    arrays["opacities"] = _drawn(arrays["opacities"][:, 0])
    return Scene(**arrays)


def _drawn(opacities: NDArray[Any]) -> NDArray[Any]:
    """Converters from 8 bits write infinities for opacities of 0 and 1; they become the ends of `logits`."""
    ends = logits(np.array([0, 255]))
    return np.where(np.isinf(opacities), np.where(opacities < 0, *ends), opacities)


def rest_names(names: tuple[str, ...], where: str) -> list[str]:
    """f_rest_0, f_rest_1, ...: those of the view-dependent colour, however the file orders them."""
    rest = [f"f_rest_{i}" for i in range(sum(n.startswith("f_rest_") for n in names))]
    if len(rest) not in (0, 9, 24, 45) or not set(rest) <= set(names):
        raise BadInput(
            "PLY",
            f"{where}, with {len(rest)} properties f_rest_...",
            "0, 9, 24 or 45 of them, numbered from 0",
        )
    return rest


def columns(block: NDArray[Any], names: Any) -> NDArray[Any]:
    """float32 [rows, len(names)]."""
    out = np.empty((len(block), len(names)), np.float32)
    for i, name in enumerate(names):
        out[:, i] = block[name]
    return out


def pieces(scene: Scene) -> Iterator[bytes]:
    """The file: little-endian float32, without the normals that nobody reads."""
    rest = [f"f_rest_{i}" for i in range(3 * (scene.sh.shape[1] - 1))]
    names = [*_NEEDED["means"], *_NEEDED["sh"], *rest, "opacity", *_NEEDED["scales"], *_NEEDED["quats"]]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(scene)}"]
    yield "\n".join([*lines, *(f"property float {n}" for n in names), "end_header\n"]).encode()
    for first in range(0, len(scene), _ROWS):
        at = slice(first, first + _ROWS)
        sh = scene.sh[at]
        parts = [scene.means[at], sh[:, 0], channels_first(sh[:, 1:]), scene.opacities[at, None]]
        yield np.concatenate([*parts, scene.scales[at], scene.quats[at]], 1).astype("<f4").tobytes()
