"""Files of scenes: which they are, how they are read and how they are written.

    scene = read("scene.ply")          # .ply, compressed .ply, .splat, .spz, .sog; a path or URL
    write(scene, "scene.spz")          # by the ending, of the same five

Every reader checks what a file claims against its size before it allocates, and gives a scene that can be drawn or
one line that says what is wrong: BadInput for a file of another sort, CorruptArtefact for a damaged one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.files import atomic_write, open_reader
from holdall.places import is_file, is_folder
from holdall.splats.formats import chunked, pictures, ply, sog, splat, spz

if TYPE_CHECKING:
    from holdall.files import Reader
    from holdall.splats.scene import Scene

__all__ = ["ENDINGS", "known", "read", "write"]

ENDINGS = (".compressed.ply", ".ply", ".splat", ".spz", ".sog")  # the longer one first
_WRITERS: dict[str, Callable[[Scene], Iterator[bytes]]] = {
    ".compressed.ply": chunked.pieces,
    ".ply": ply.pieces,
    ".splat": splat.pieces,
    ".spz": spz.pieces,
    ".sog": pictures.pieces,
}
_HEAD = 64 << 10
_WORDS_OF_SOG = (b'"means"', b'"quats"', b'"sh0"')


def known(url: str, head: bytes) -> str | None:
    """The format of a file that starts with `head`: "ply", "compressed.ply", "splat", "spz", "sog", or None.

    By what it holds; only `.splat`, which has no mark, is known by its name. A folder (no head) by its meta.json.
    """
    if head[:4] in (b"ply\n", b"ply\r"):
        if b"property float trbf_center" in head:  # of a scene that moves: formats.spacetime
            return None
        return "compressed.ply" if b"packed_position" in head else "ply"
    if head[:4] == spz.MAGIC or (head[:2] == b"\x1f\x8b" and _unzipped(head)[:4] == spz.MAGIC):
        return "spz"
    name = url.lower()
    if head[:4] == b"PK\3\4":
        return "sog" if name.endswith(".sog") or b"means_l.webp" in head else None
    if head.lstrip()[:1] == b"{" and all(word in head for word in _WORDS_OF_SOG) and b".webp" in head:
        return "sog"
    if not head:
        return _known_folder(url)
    return "splat" if name.endswith(".splat") else None


def _unzipped(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 16)
    except zlib.error:
        return b""


def _known_folder(url: str) -> str | None:
    meta = f"{url.rstrip('/')}/{sog.META}"
    if not is_folder(url) or not is_file(meta):
        return None
    with open_reader(meta) as file:
        return known(meta, file.read(0, min(file.size, _HEAD)) or b"\0")


def read(url: str) -> Scene:
    """The scene of a file, or of a SOG folder. BadInput, CorruptArtefact or NeedsExtra where there is none."""
    if is_folder(url):
        url = f"{url.rstrip('/')}/{sog.META}"
    with open_reader(url) as file:
        kind = known(url, file.read(0, min(file.size, _HEAD))) if file.size else None
        if kind is None:
            raise BadInput(
                "scene", f"{url}, which is none" if file.size else f"{url}, which is empty", _wanted()
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold, `checked` tells
            return _scene(kind, url, file).checked(url)


def _scene(kind: str, url: str, file: Reader) -> Scene:
    if kind in ("ply", "compressed.ply"):
        parts = ply.elements(file)
        packed = "vertex" in parts and "packed_position" in parts["vertex"].names
        return (chunked if packed else ply).read(file, parts)
    if kind == "splat":
        return splat.read(file)
    raw = file.read(0, file.size)
    if kind == "spz":
        return spz.read(raw, url)
    if raw[:4] == b"PK\3\4":
        return sog.read(sog.zipped(raw, url), url)
    folder = url[: url.replace("\\", "/").rfind("/") + 1]
    return sog.read(_beside(folder, raw), url)


def _beside(folder: str, meta: bytes) -> sog.Get:
    """The files of a folder, of which meta.json was read already, whatever its name."""

    def get(name: str) -> bytes:
        if name == sog.META:
            return meta
        with open_reader(folder + name) as file:
            return file.read(0, file.size)

    return get


def write(scene: Scene, url: str) -> None:
    """A file of the format that its name ends with, whole or not at all."""
    ending = next((e for e in ENDINGS if url.lower().endswith(e)), None)
    if ending is None or ending not in _WRITERS:
        raise BadInput("output", url, f"a name that ends with {', '.join(_WRITERS)}")
    scene.checked()
    with atomic_write(url) as f:
        for piece in _WRITERS[ending](scene):
            f.write(piece)
        f.publish()


def _wanted() -> str:
    return f"a scene of 3D Gaussians ({', '.join(ENDINGS)})"
