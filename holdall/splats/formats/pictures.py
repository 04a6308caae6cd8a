"""Writes `.sog`, version 2: a zip of lossless WebP pictures, whose view-dependent colours come from one palette.

The palette is what other writers take minutes for. Here it is learnt in two levels, a few hundred groups and then a
share of the palette in each, so that a Gaussian is compared with a few hundred entries and not with all 65,536.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.splats.formats.sog import ACROSS, META
from holdall.splats.formats.values import by_nearness, bytes_of, levels, smallest_three

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.scene import Scene

_WIDEST = 16383  # pixels across a WebP picture
_ENTRIES = 256  # of a list of numbers
_LEARNERS = 200_000  # values that a list is learnt from
_ROUNDS = 12
_EFFORT = 80  # of WebP; at 100 these pictures take 30 times as long and are no smaller


def pieces(scene: Scene) -> Iterator[bytes]:
    """The file, its Gaussians in an order of neighbours."""
    scene = scene.take(by_nearness(scene.means))
    n = len(scene)
    wide = 4 * math.ceil(math.sqrt(n) / 4)
    if wide > _WIDEST:
        raise BadInput("scene", f"{n:,} Gaussians", f"at most {_WIDEST**2:,} for a .sog file")
    size = (4 * math.ceil(n / wide / 4), wide)
    logs = np.sign(scene.means) * np.log1p(np.abs(scene.means.astype(np.float64)))
    low, high = logs.min(0), logs.max(0)
    places = np.rint((logs - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    three, which = smallest_three(scene.quats)
    turns = np.concatenate(
        [bytes_of((three * np.sqrt(2) + 1) * 127.5), (252 + which[:, None]).astype(np.uint8)], 1
    )
    sizes, sizes_list = listed(scene.scales)
    colours, colours_list = listed(scene.sh[:, 0])
    planes = {
        "means_l": (places & 255).astype(np.uint8), "means_u": (places >> 8).astype(np.uint8), "quats": turns,
        "scales": sizes, "sh0": np.concatenate([colours, levels(scene.opacities)[:, None]], 1),
    }  # fmt: skip
    meta: dict[str, Any] = {
        "version": 2, "asset": {"generator": "holdall"}, "count": n,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": sizes_list, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colours_list, "files": ["sh0.webp"]},
    }  # fmt: skip
    files = {f"{name}.webp": _webp(columns, size) for name, columns in planes.items()}
    if scene.degree:
        more, meta["shN"] = _harmonics(scene, size)
        files |= more
    yield _zip({META: json.dumps(meta).encode(), **files})


def _harmonics(scene: Scene, size: tuple[int, int]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The two pictures of view-dependent colours, and what meta.json tells of them."""
    n, k = len(scene), scene.sh.shape[1] - 1
    count = min(n, 1024 * min(64, 2 ** max(0, int(math.log2(max(n, 1024) / 1024)))))
    palette, labels = paletted(scene.sh[:, 1:].reshape(n, 3 * k), count)
    coded, numbers = listed(palette.reshape(-1, k, 3))
    rows = math.ceil(len(palette) / ACROSS)
    names = ["shN_centroids.webp", "shN_labels.webp"]
    files = {
        names[0]: _webp(coded.reshape(-1, 3), (rows, ACROSS * k)),
        names[1]: _webp(np.stack([labels & 255, labels >> 8, 0 * labels], 1).astype(np.uint8), size),
    }
    return files, {"count": len(palette), "bands": scene.degree, "codebook": numbers, "files": names}


def listed(values: NDArray[Any]) -> tuple[NDArray[Any], list[float]]:
    """(uint8 places, up to 256 numbers): a list for all values, by Lloyd's method from a good spread."""
    flat = np.sort(values.ravel()[:: max(1, values.size // _LEARNERS)].astype(np.float64))
    flat = np.concatenate([[float(values.min())], flat, [float(values.max())]])
    counts, edges = np.histogram(flat, 256)  # finer, and its empty bins leave the tails without entries
    spread = np.concatenate(
        [[0], np.cumsum(np.cbrt(counts))]
    )  # where the squared error of a fine list is least
    book = np.interp((np.arange(_ENTRIES) + 0.5) / _ENTRIES * spread[-1], spread, edges)
    sums = np.concatenate([[0], np.cumsum(flat)])
    for _ in range(_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(flat, (book[1:] + book[:-1]) / 2), [len(flat)]])
        held = np.diff(ends)
        book = np.where(held > 0, np.diff(sums[ends]) / np.maximum(held, 1), book)
        book.sort()
    told = np.unique(book.astype(np.float32))
    middles = (told[1:].astype(np.float64) + told[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8), [float(x) for x in told]


def paletted(x: NDArray[Any], count: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """(entries [count or fewer, D], the entry of each row [N]) of x [N, D]."""
    rng = np.random.default_rng(seed)
    groups = max(1, int(math.sqrt(count)))
    middles = _means(x, groups, rng)
    group = _nearest(x, middles)
    labels, entries, first = np.zeros(len(x), np.int64), [], 0
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(len(middles) + 1))
    for start, stop in pairwise(ends):
        own = x[order[start:stop]]
        if not len(own):
            continue
        found = _means(own, max(1, len(own) * count // len(x)), rng)
        labels[order[start:stop]] = first + _nearest(own, found)
        entries.append(found)
        first += len(found)
    return np.concatenate(entries), labels


def _means(x: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[Any]:
    """k-means [k, D]."""
    if k >= len(x):
        return x.astype(np.float32)
    centres = x[rng.choice(len(x), k, replace=False)].astype(np.float32)
    for _ in range(_ROUNDS):
        mine = _nearest(x, centres)
        held = np.bincount(mine, minlength=k)
        order = np.argsort(mine, kind="stable")
        starts = np.searchsorted(mine[order], np.flatnonzero(held))
        centres[held > 0] = np.add.reduceat(x[order], starts, axis=0) / held[held > 0, None]
    return centres


def _nearest(x: NDArray[Any], centres: NDArray[Any]) -> NDArray[Any]:
    """[N]: the nearest centre of each row."""
    lengths = (centres**2).sum(1) / 2
    out = np.empty(len(x), np.int64)
    for first in range(0, len(x), 1 << 14):
        block = x[first : first + (1 << 14)]
        out[first : first + len(block)] = (lengths - block @ centres.T).argmin(1)
    return out


def _webp(columns: NDArray[Any], size: tuple[int, int]) -> bytes:
    """uint8 [N, 3 or 4] as the first pixels of a picture of that size."""
    from PIL import Image

    pixels = np.zeros((size[0] * size[1], 4), np.uint8)
    pixels[:, 3] = 255
    pixels[: len(columns), : columns.shape[1]] = columns
    made = io.BytesIO()
    Image.fromarray(pixels.reshape(*size, 4)).save(
        made, "WEBP", lossless=True, exact=True, quality=_EFFORT, method=2
    )
    return made.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in files.items():
            archive.writestr(zipfile.ZipInfo(name), raw)  # of a fixed date: the same scene, the same bytes
    return made.getvalue()
