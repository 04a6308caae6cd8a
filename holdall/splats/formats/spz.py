"""`.spz`: fixed steps, then gzip (versions 1 to 3) or one zstd stream for each attribute (version 4).

Files keep x right, y up, z backward (RUB); scenes and PLY files y down, z forward (RDF). A file may name other axes
in an extension, which is heeded. Some writers never turned the axes, and nothing in their files says so: see `axes`.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats.bounded import Gunzip, believed, unzstd, zstandard
from holdall.splats.formats.values import (
    bytes_of,
    levels,
    logits,
    mirrored,
    smallest_three,
    whole_four,
    with_first,
)
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"NGSP"
_HEAD, _LONG_HEAD = struct.Struct("<4sIIBBBB"), struct.Struct("<4sIIBBBBI12x")
_AXES = ("", "LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF")
_AXES_RECORD, _HAS_RECORDS = 0xADBE0003, 2
_FINEST = 12  # bits after the point of a position: what all writers use
_COLOUR = 0.15 * 255
_EFFORT = 7  # of gzip; 9 takes three times as long for half a percent on real scenes
_ROOT = np.sqrt(0.5)


def read(raw: bytes, name: str, axes: str = "RUB") -> Scene:
    """The scene of a file's bytes. axes: how the file was written, where it does not say so itself."""
    if raw[:4] == MAGIC:
        version, n, degree, bits, streams, axes = _zstd_streams(raw, name, axes)
    else:
        version, n, degree, bits, streams = _gzip_streams(raw, name)
    return _scene(version, n, degree, bits, streams, axes)


def _sizes(version: int, n: int, degree: int) -> list[int]:
    """Bytes of positions, opacities, colours, scales, rotations and harmonics."""
    harmonics = 3 * ((degree + 1) ** 2 - 1)
    each = (6 if version == 1 else 9, 1, 3, 3, 3 if version < 3 else 4, harmonics)
    return [n * size for size in each]


def _checked(version: int, degree: int, bits: int, versions: range, name: str) -> None:
    if version not in versions:
        raise BadInput("SPZ", f"{name}, of version {version}", "version 1 to 4")
    if degree > 3:
        raise BadInput("SPZ", f"{name}, with harmonics of degree {degree}", "degree 0 to 3")
    if bits > 23:
        raise CorruptArtefact(name, f"{bits} bits after the point of positions of 24")


def _gzip_streams(raw: bytes, name: str) -> tuple[int, int, int, int, list[bytes]]:
    packed = Gunzip(raw, name)
    magic, version, n, degree, bits, _, _ = _HEAD.unpack(packed.take(_HEAD.size))
    if magic != MAGIC:
        raise BadInput("SPZ", f"{name}, a gzip file of something else", "a scene of 3D Gaussians")
    _checked(version, degree, bits, range(1, 4), name)
    sizes = _sizes(version, n, degree)
    believed(sum(sizes), len(raw), name)
    streams = [packed.take(size) for size in sizes]
    packed.finish()
    return version, n, degree, bits, streams


def _zstd_streams(raw: bytes, name: str, axes: str) -> tuple[int, int, int, int, list[bytes], str]:
    if len(raw) < _LONG_HEAD.size:
        raise CorruptArtefact(name, "it ends inside of its header")
    _, version, n, degree, bits, flags, count, table = _LONG_HEAD.unpack_from(raw)
    _checked(version, degree, bits, range(4, 5), name)
    sizes = [size for size in _sizes(version, n, degree) if size]
    believed(sum(sizes), len(raw), name)
    at = table + 16 * count
    if table < _LONG_HEAD.size or at > len(raw) or count != len(sizes):
        raise CorruptArtefact(name, f"its table of {count} streams at {table} does not fit")
    streams = []
    for i, size in enumerate(sizes):
        packed, unpacked = struct.unpack_from("<QQ", raw, table + 16 * i)
        if unpacked != size or packed > len(raw) - at:
            raise CorruptArtefact(name, f"stream {i} of {packed:,} bytes for {unpacked:,}, not {size:,}")
        streams.append(unzstd(raw[at : at + packed], size, name))
        at += packed
    if flags & _HAS_RECORDS:
        axes = _told_axes(raw[_LONG_HEAD.size : table], name) or axes
    return version, n, degree, bits, streams + [b""] * (6 - len(streams)), axes


def _told_axes(records: bytes, name: str) -> str:
    """The axes that an extension names, or "" where none does."""
    at = 0
    while at + 8 <= len(records):
        kind, size = struct.unpack_from("<II", records, at)
        if size > len(records) - at - 8:
            raise CorruptArtefact(name, "an extension goes past its place")
        if kind == _AXES_RECORD and size == 4:
            told = int.from_bytes(records[at + 8 : at + 12], "little")
            if told >= len(_AXES):
                raise BadInput(
                    "SPZ", f"{name}, whose axes are of kind {told}", "one of " + ", ".join(_AXES[1:])
                )
            return _AXES[told]
        at += 8 + size
    return ""


def _scene(version: int, n: int, degree: int, bits: int, streams: list[bytes], axes: str) -> Scene:
    positions, opacities, colours, scales, rotations, harmonics = (
        np.frombuffer(s, np.uint8) for s in streams
    )
    if version == 1:
        means = positions.view("<f2").reshape(n, 3).astype(np.float64)
    else:
        wide = np.zeros((n, 3, 4), np.uint8)
        wide[:, :, 1:] = positions.reshape(n, 3, 3)
        means = (wide.view("<i4")[:, :, 0] >> 8) / (1 << bits)
    rest = (harmonics.reshape(n, (degree + 1) ** 2 - 1, 3).astype(np.float32) - 128) / 128
    arrays = {
        "means": means,
        "scales": scales.reshape(n, 3) / 16 - 10,
        "quats": _thirds(rotations.reshape(n, 3)) if version < 3 else _rotations(rotations.view("<u4")),
        "opacities": logits(opacities),
        "sh": with_first((colours.reshape(n, 3) - 127.5) / _COLOUR, rest),
    }
    return Scene(**mirrored(arrays, *_signs(axes)))


def _signs(axes: str) -> tuple[int, int, int]:
    """Which axes point the other way in a scene, whose own are RDF."""
    x, y, z = (1 if ours == theirs else -1 for ours, theirs in zip("RDF", axes, strict=True))
    return x, y, z


def _thirds(parts: NDArray[Any]) -> NDArray[Any]:
    xyz = parts / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz**2).sum(1, keepdims=True)))
    return np.concatenate([w, xyz], 1)


def _rotations(words: NDArray[Any]) -> NDArray[Any]:
    """Two bits for the largest of x, y, z, w, then a sign and nine bits for each other."""
    parts = (words[:, None] >> np.array([20, 10, 0], np.uint32)) & 1023
    three = (parts & 511) / 511 * _ROOT * np.where(parts & 512, -1, 1)
    xyzw = whole_four(three, (words >> 30).astype(np.intp))
    return np.roll(xyzw, 1, axis=1)


def pieces(scene: Scene, version: int = 3) -> Iterator[bytes]:
    """The file. Version 3 by default: readers of version 4 take it too, and many take no other."""
    n, degree = len(scene), scene.degree
    reach = float(np.abs(scene.means).max(initial=0))
    bits = min(_FINEST, 23 - max(0, int(np.floor(np.log2(max(reach * 1.0000001, 1)))) + 1))
    if bits < 0:
        raise BadInput(
            "scene", f"positions up to {reach:.3g}", "below 8,388,608 for a .spz file: scale it down"
        )
    streams = _streams(scene, bits)
    if version == 4:
        streams = [s for s in streams if s]
        packed = [zstandard.ZstdCompressor(level=12).compress(s) for s in streams]
        yield _LONG_HEAD.pack(MAGIC, 4, n, degree, bits, 0, len(streams), _LONG_HEAD.size)
        yield b"".join(struct.pack("<QQ", len(p), len(s)) for p, s in zip(packed, streams, strict=True))
        yield from packed
    else:
        head = _HEAD.pack(MAGIC, 3, n, degree, bits, 0, 0)
        yield gzip.compress(b"".join([head, *streams]), _EFFORT, mtime=0)


def _streams(scene: Scene, bits: int) -> list[bytes]:
    turned = mirrored(dict(scene.arrays()), *_signs("RUB"))
    fixed = np.rint(turned["means"].astype(np.float64) * (1 << bits)).astype("<i4")
    three, which = smallest_three(np.roll(turned["quats"], -1, axis=1))
    words = which.astype(np.uint32)
    for part in three.T:
        size = np.floor(511 * np.abs(part) / _ROOT + 0.5).astype(np.uint32)
        words = words << 10 | (part < 0).astype(np.uint32) << 9 | np.minimum(size, 511)
    return [
        fixed.view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),
        levels(turned["opacities"]).tobytes(),
        bytes_of(turned["sh"][:, 0] * _COLOUR + 127.5).tobytes(),
        bytes_of((turned["scales"].astype(np.float64) + 10) * 16).tobytes(),
        words.astype("<u4").tobytes(),
        _harmonics(turned["sh"][:, 1:]).tobytes(),
    ]


def _harmonics(rest: NDArray[Any]) -> NDArray[Any]:
    """uint8 [N, K-1, 3]. The format's own writers keep 5 bits of degree 1 and 4 of the others, so that they pack."""
    step = np.full((rest.shape[1], 1), 16)
    step[:3] = 8
    near = np.floor((np.rint(rest.astype(np.float64) * 128) + 128 + step / 2) / step) * step
    return np.clip(near, 0, 255).astype(np.uint8)
