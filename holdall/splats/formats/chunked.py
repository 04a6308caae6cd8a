"""Compressed PLY: 16 bytes a Gaussian, on grids that chunks of 256 neighbours span; harmonics in a byte each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats.ply import Element, columns, rest_names
from holdall.splats.formats.values import (
    by_nearness,
    channels_first,
    channels_last,
    levels,
    logits,
    smallest_three,
    whole_four,
    with_first,
)  # fmt: skip
from holdall.splats.scene import C0, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.files import Reader

_CHUNK = 256
_PLACES = tuple(f"{end}_{axis}" for end in ("min", "max") for axis in "xyz")
_SCALES = tuple(f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz")
_COLOURS = tuple(f"{end}_{channel}" for end in ("min", "max") for channel in "rgb")
_WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_FAR = 20.0  # logarithms of sizes beyond this are cut: they would coarsen their whole chunk


def read(file: Reader, parts: dict[str, Element]) -> Scene:
    chunk, vertex, sh = parts.get("chunk"), parts["vertex"], parts.get("sh")
    n = vertex.count
    _fits(file.name, chunk, vertex, sh)
    assert chunk is not None
    spans = chunk.rows(file, 0, chunk.count)
    words = {w: vertex.rows(file, 0, n)[w] for w in _WORDS}
    of = np.arange(n) // _CHUNK
    colours = _eights(words["packed_color"])
    red_green_blue = colours[:, :3] / 255
    if "min_r" in chunk.names:
        red_green_blue = _within(columns(spans, _COLOURS)[of], red_green_blue)
    three = ((words["packed_rotation"][:, None] >> np.array([20, 10, 0], np.uint32)) & 1023) / 1023 - 0.5
    rest = None
    if sh is not None:
        names = rest_names(sh.names, file.name)
        steps = columns(sh.rows(file, 0, n), names).astype(np.uint8)
        rest = _harmonics()[channels_last(steps)]
    return Scene(
        means=_within(columns(spans, _PLACES)[of], _elevens(words["packed_position"])),
        scales=_within(columns(spans, _SCALES)[of], _elevens(words["packed_scale"])),
        quats=whole_four(three * np.sqrt(2), (words["packed_rotation"] >> 30).astype(np.intp)),
        opacities=logits(colours[:, 3]),
        sh=with_first((red_green_blue - 0.5) / C0, rest),
    )


def _fits(name: str, chunk: Element | None, vertex: Element, sh: Element | None) -> None:
    """BadInput or CorruptArtefact for a file that is not whole."""
    wanted = {*_PLACES, *_SCALES}
    have = set() if chunk is None else set(chunk.names)
    missing = [*(wanted - have), *(set(_WORDS) - set(vertex.names))]
    if have & set(_COLOURS):
        missing += set(_COLOURS) - have
    if missing:
        raise BadInput("compressed PLY", f"{name}, without {', '.join(sorted(missing))}", "a whole one")
    assert chunk is not None and vertex.row is not None
    if chunk.count != -(-vertex.count // _CHUNK):
        raise CorruptArtefact(name, f"{chunk.count:,} chunks of {_CHUNK} for {vertex.count:,} Gaussians")
    if any(vertex.row[w].kind != "u" or vertex.row[w].itemsize != 4 for w in _WORDS):
        raise BadInput("compressed PLY", f"{name}, whose {', '.join(_WORDS)} are no uint", "a whole one")
    if sh is not None:
        bytes_only = sh.row is not None and all(sh.row[p] == np.uint8 for p in sh.names)
        if sh.count != vertex.count or not bytes_only:
            raise CorruptArtefact(
                name, f"{sh.count:,} harmonics for {vertex.count:,} Gaussians, or not of uchar"
            )


def _harmonics() -> NDArray[Any]:
    """Of each byte, -4 to 4: the end bytes are the ends, the others the middles of their 256ths."""
    inside = (np.arange(256) + 0.5) / 256
    inside[[0, 255]] = 0, 1
    return (8 * inside - 4).astype(np.float32)


def _within(ends: NDArray[Any], share: NDArray[Any]) -> NDArray[Any]:
    return ends[:, :3] * (1.0 - share) + ends[:, 3:].astype(np.float64) * share


def _elevens(words: NDArray[Any]) -> NDArray[Any]:
    """[N, 3] of 11, 10 and 11 bits, as shares."""
    return np.stack([(words >> 21) / 2047, (words >> 11 & 1023) / 1023, (words & 2047) / 2047], 1)


def _eights(words: NDArray[Any]) -> NDArray[Any]:
    return (words[:, None] >> np.array([24, 16, 8, 0], np.uint32)) & 255


def pieces(scene: Scene) -> Iterator[bytes]:
    """The file, its Gaussians in an order of neighbours."""
    scene = scene.take(by_nearness(scene.means))
    n, count = len(scene), -(-len(scene) // _CHUNK)
    rest = channels_first(scene.sh[:, 1:])
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {count}"]
    lines += [f"property float {name}" for name in (*_PLACES, *_SCALES, *_COLOURS)]
    lines += [f"element vertex {n}", *(f"property uint {name}" for name in _WORDS)]
    if rest.shape[1]:
        lines += [f"element sh {n}", *(f"property uchar f_rest_{i}" for i in range(rest.shape[1]))]
    yield "\n".join([*lines, "end_header\n"]).encode()
    triples = (scene.means, np.clip(scene.scales, -_FAR, _FAR), 0.5 + C0 * scene.sh[:, 0].astype(np.float64))
    spans = [_spans(t, count) for t in triples]
    yield np.concatenate(spans, 1).astype("<f4").tobytes()
    places, sizes, colours = (_shares(t, s) for t, s in zip(triples, spans, strict=True))
    three, which = smallest_three(scene.quats)
    turns = [_steps(t, 1023) for t in (three * np.sqrt(0.5) + 0.5).T]
    rotation = which.astype(np.uint32) << 30 | turns[0] << 20 | turns[1] << 10 | turns[2]
    red, green, blue = (_steps(c, 255) for c in colours.T)
    colour = red << 24 | green << 16 | blue << 8 | levels(scene.opacities).astype(np.uint32)
    yield np.stack([_packed(places), rotation, _packed(sizes), colour], 1).astype("<u4").tobytes()
    yield np.clip(np.floor((rest.astype(np.float64) / 8 + 0.5) * 256), 0, 255).astype(np.uint8).tobytes()


def _spans(x: NDArray[Any], count: int) -> NDArray[Any]:
    """[chunks, 6], float32: the lows and the highs of each 256 rows of x [N, 3]."""
    starts = np.arange(count) * _CHUNK
    return np.concatenate([np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)], 1).astype(
        np.float32
    )


def _shares(x: NDArray[Any], spans: NDArray[Any]) -> NDArray[Any]:
    ends = np.repeat(spans.astype(np.float64), _CHUNK, axis=0)[: len(x)]
    wide = ends[:, 3:] - ends[:, :3]
    return np.clip((x - ends[:, :3]) / np.where(wide > 0, wide, 1), 0, 1)


def _steps(shares: NDArray[Any], top: int) -> NDArray[Any]:
    return np.clip(np.rint(shares * top), 0, top).astype(np.uint32)


def _packed(shares: NDArray[Any]) -> NDArray[Any]:
    x, y, z = shares.T
    return _steps(x, 2047) << 21 | _steps(y, 1023) << 11 | _steps(z, 2047)
