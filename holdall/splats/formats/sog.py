"""`.sog`: a table `meta.json` and pictures (lossless WebP) whose pixels are Gaussians; zipped, or loose in a folder."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats.bounded import believed, brief
from holdall.splats.formats.values import logits, whole_four, with_first
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

META = "meta.json"
_META_BYTES = 4 << 20
ACROSS = 64  # centroids in a row of their picture
_ZIP_FAULTS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, OSError, ValueError, struct.error,
    IndexError, KeyError,
)  # fmt: skip  # what zipfile raises for archives that are not whole

Get = Callable[[str], bytes]  # the bytes of a file beside meta.json


def zipped(raw: bytes, where: str) -> Get:
    """The files of a zip archive."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
    except _ZIP_FAULTS as fault:
        raise CorruptArtefact(where, f"its zip archive is broken ({brief(fault)})") from fault

    most = max(len(raw), _META_BYTES)  # pictures do not become smaller by zipping

    def get(name: str) -> bytes:
        try:
            with archive.open(name) as member:
                found = member.read(most + 1)
        except _ZIP_FAULTS as fault:
            raise CorruptArtefact(where, f"{name} in it cannot be read ({brief(fault)})") from fault
        if len(found) > most:
            raise CorruptArtefact(where, f"{name} in it is larger than {most:,} bytes")
        return found

    return get


def read(get: Get, where: str) -> Scene:
    try:
        meta = json.loads(get(META))
    except (ValueError, RecursionError) as fault:
        raise CorruptArtefact(where, f"its {META} is no JSON ({brief(fault)})") from fault
    table = _Table(meta, get, where)
    version = table.told("version", default=1)
    if version not in (1, 2):
        raise BadInput("SOG", f"{where}, of version {str(version)[:20]}", "version 1 or 2")
    n = table.count("count") if version == 2 else table.count("means", "shape", 0)
    if n < 1:
        raise BadInput("SOG", f"{where}, of {n} Gaussians", "at least one")
    quats = table.plane("quats", 0, n)
    which = quats[:, 3].astype(np.intp) - 252
    if which.min() < 0:
        raise CorruptArtefact(
            where, f"{int((which < 0).sum()):,} rotations without a mark of their largest part"
        )
    arrays = {
        "means": _means(table, n),
        "quats": whole_four((quats[:, :3] / 255 * 2 - 1) * np.sqrt(0.5), which),
    }
    return _second(table, n, arrays) if version == 2 else _first(table, n, arrays)


def _means(table: _Table, n: int) -> NDArray[Any]:
    low, high = table.numbers("means", "mins", count=3), table.numbers("means", "maxs", count=3)
    fine, coarse = (table.plane("means", i, n)[:, :3].astype(np.float64) for i in (0, 1))
    logs = low + (high - low) * ((fine + 256 * coarse) / 65535)
    return np.sign(logs) * np.expm1(np.abs(logs))


def _second(table: _Table, n: int, arrays: dict[str, Any]) -> Scene:
    """Version 2: scales and colours are places in lists of numbers, opacities bytes."""
    colours = table.plane("sh0", 0, n)
    rest = None
    if table.meta.get("shN"):
        count = table.count("shN", "count")
        bands = table.count("shN", "bands")
        if bands not in (1, 2, 3):
            raise BadInput("SOG", f"{table.where}, with harmonics of degree {bands}", "degree 0 to 3")
        rest = table.palette(n, (bands + 1) ** 2 - 1, count)
        rest = table.looked_up("shN", rest)
    return Scene(
        **arrays,
        scales=table.looked_up("scales", table.plane("scales", 0, n)[:, :3]),
        opacities=logits(colours[:, 3]),
        sh=with_first(table.looked_up("sh0", colours[:, :3]), rest),
    )


def _first(table: _Table, n: int, arrays: dict[str, Any]) -> Scene:
    """Version 1: everything lies on even steps between a low and a high, opacities as logits."""

    def even(section: str, steps: NDArray[Any], count: int | None) -> NDArray[Any]:
        low, high = (table.numbers(section, end, count=count) for end in ("mins", "maxs"))
        return low + (high - low) * (steps / 255)

    colours = even("sh0", table.plane("sh0", 0, n), 4)
    rest = None
    if table.meta.get("shN"):
        wide, high = table.picture("shN", 0).shape[1::-1]
        k = wide // ACROSS
        if k not in (3, 8, 15):
            raise CorruptArtefact(table.where, f"a palette of harmonics {wide} pixels wide")
        rest = even("shN", table.palette(n, k, ACROSS * high), None)
    return Scene(
        **arrays,
        scales=even("scales", table.plane("scales", 0, n)[:, :3], 3),
        opacities=colours[:, 3],
        sh=with_first(colours[:, :3], rest),
    )


class _Table:
    """meta.json, and the pictures that it names."""

    def __init__(self, meta: Any, get: Get, where: str):
        if not isinstance(meta, dict):
            raise CorruptArtefact(where, f"its {META} is no table")
        self.meta, self._get, self.where = meta, get, where

    def told(self, *path: str | int, default: Any = None) -> Any:
        """What stands at a place of the table."""
        at: Any = self.meta
        for step in path:
            holds = step in at if isinstance(at, dict) else isinstance(at, list) and 0 <= int(step) < len(at)
            if not holds:
                if default is not None:
                    return default
                raise CorruptArtefact(self.where, f"its {META} has no {'.'.join(map(str, path))}")
            at = at[step]
        return at

    def count(self, *path: str | int) -> int:
        found = self.told(*path)
        if type(found) is not int or not 0 <= found < 1 << 40:
            raise CorruptArtefact(self.where, f"its {META} has no count at {'.'.join(map(str, path))}")
        return found

    def numbers(self, *path: str | int, count: int | None) -> NDArray[Any]:
        """float64 [count], or of no axes where count is None."""
        found = self.told(*path)
        items = [found] if count is None else found
        fine = isinstance(items, list) and len(items) == (count or 1) and all(map(_finite, items))
        if not fine:
            raise CorruptArtefact(
                self.where, f"its {META} has no {count or 1} numbers at {'.'.join(map(str, path))}"
            )
        return np.array(items[0] if count is None else items, np.float64)

    def looked_up(self, section: str, places: NDArray[Any]) -> NDArray[Any]:
        """Numbers of the section's list, float32. Some writers left the first one out."""
        found = self.told(section, "codebook")
        if isinstance(found, list) and len(found) > 2 and found[0] is None and all(map(_finite, found[1:])):
            found = [found[1] + (found[1] - found[-1]) / 255, *found[1:]]
        if not (isinstance(found, list) and 0 < len(found) <= 256 and all(map(_finite, found))):
            raise CorruptArtefact(
                self.where, f"its {META} has no list of up to 256 numbers at {section}.codebook"
            )
        if int(places.max()) >= len(found):
            raise CorruptArtefact(self.where, f"places past the end of {section}.codebook")
        taken: NDArray[Any] = np.array(found, np.float64).astype(np.float32)[places]
        return taken

    def palette(self, n: int, k: int, count: int) -> NDArray[Any]:
        """uint8 [n, k, 3]: each Gaussian's row of the palette of harmonics."""
        picture = self.picture("shN", 0)
        if picture.shape[1] != ACROSS * k or picture.shape[0] * ACROSS < count:
            raise CorruptArtefact(
                self.where, f"a palette of {picture.shape[1::-1]} pixels for {count:,} of {k}"
            )
        label = self.plane("shN", 1, n)[:, :2].astype(np.intp)
        label = label[:, 0] + 256 * label[:, 1]
        if label.max() >= count:
            raise CorruptArtefact(self.where, f"places past the end of a palette of {count:,}")
        return picture[:, :, :3].reshape(-1, k, 3)[label]

    def plane(self, section: str, i: int, n: int) -> NDArray[Any]:
        """uint8 [n, 4]: the first n pixels."""
        pixels = self.picture(section, i).reshape(-1, 4)
        if len(pixels) < n:
            raise CorruptArtefact(self.where, f"{len(pixels):,} pixels of {section} for {n:,} Gaussians")
        return pixels[:n]

    def picture(self, section: str, i: int) -> NDArray[Any]:
        """uint8 [high, wide, 4]."""
        name = self.told(section, "files", i)
        if not isinstance(name, str) or not name or set(name) & set("/\\:\0") or name.startswith("."):
            raise CorruptArtefact(
                self.where, f"its {META} names {str(name)[:60]!r}, which is no file beside it"
            )
        return _decoded(self._get(name), f"{self.where}: {name}")


def _finite(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) < 1e300 and math.isfinite(x)


def _decoded(raw: bytes, where: str) -> NDArray[Any]:
    from PIL import Image

    wide, high = _webp_size(raw, where)
    believed(4 * wide * high, len(raw), where)  # before the decoder allocates
    try:
        with Image.open(io.BytesIO(raw), formats=["WEBP"]) as picture:
            pixels = np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise CorruptArtefact(where, f"it is no whole WebP picture ({brief(fault)})") from fault
    if pixels.shape != (high, wide, 4):
        raise CorruptArtefact(
            where, f"a picture of {pixels.shape[1]} x {pixels.shape[0]} that claims {wide} x {high}"
        )
    return pixels


def _webp_size(raw: bytes, where: str) -> tuple[int, int]:
    """What the first chunk tells."""
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP" and len(raw) >= 30:
        if raw[12:16] == b"VP8L":
            bits = int.from_bytes(raw[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if raw[12:16] == b"VP8X":
            return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
        if raw[12:16] == b"VP8 ":
            return int.from_bytes(raw[26:28], "little") & 0x3FFF, int.from_bytes(
                raw[28:30], "little"
            ) & 0x3FFF
    raise CorruptArtefact(where, "it is no WebP picture")
