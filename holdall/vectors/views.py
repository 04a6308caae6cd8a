"""What re-ranking is measured on: views of places in two photographs that scikit-learn carries, and fixed descriptors.

A place is a spot in the left two thirds of a photograph; its views are turned, scaled, sheared, shifted and in other
colours. What distracts are such views of spots in the right third. A descriptor is made of gradients by direction in
cells at two scales, and of colours, whitened to `dim` numbers by what distracts. Nothing is learned from labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdall.optional import need

_SIZE, _SIDE, _STEP = 32, 60.0, 62  # pixels of a view; of the photograph that it shows; between places
_TURNS = 8  # directions of gradients


@dataclass(frozen=True)
class Instances:
    """Descriptors of length one [N, D] and the place that each shows, -1 for what distracts; queries alike."""

    base: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    wanted: np.ndarray

    def precision(self, scores: np.ndarray) -> float:
        """Mean average precision of scores [Q, N], higher is nearer."""
        found = []
        for row, label in zip(scores, self.wanted, strict=True):
            hit = (self.labels == label)[np.argsort(-row, kind="stable")]
            found.append(float((hit * np.cumsum(hit) / np.arange(1, len(hit) + 1)).sum() / hit.sum()))
        return float(np.mean(found))


def instances(
    places: int = 24, each: int = 33, asked: int = 3, others: int = 1500, *, dim: int = 128, hard: float = 0.7,
    white: float = 1.0, seed: int = 0,
) -> Instances:  # fmt: skip
    """`each` views of each place, of which `asked` are queries; `others` that distract.

    hard: how far views differ. white: the power of the whitening, 1 is all of it.
    """
    draw = np.random.default_rng(seed)
    shown, labels, around = [], [], []
    for number, photo in enumerate(need("sklearn.datasets", "test").load_sample_images().images):
        photo = photo.astype(np.float32) / 255
        high, wide = photo.shape[:2]
        edge = 0.66 * wide
        spots = np.array(
            [(y, x) for y in range(45, high - 30, _STEP) for x in range(45, int(edge) - 45, _STEP)]
        )
        for k, spot in enumerate(spots[draw.permutation(len(spots))[: places // 2]]):
            shown.append(views(photo, np.repeat(spot[None], each, 0), draw, hard))
            labels += [number * len(spots) + k] * each
        y, x = draw.uniform(40, high - 40, others // 2), draw.uniform(edge + 40, wide - 30, others // 2)
        around.append(views(photo, np.stack([y, x], 1), draw, hard))
    mine, rest = features(np.concatenate(shown)), features(np.concatenate(around))
    mean = rest.mean(0)
    _, sizes, axes = np.linalg.svd(rest - mean, full_matrices=False)
    turn = (axes[:dim] / (sizes[:dim, None] / len(rest) ** 0.5 + 1e-3) ** white).T
    mine, rest = (_unit((part - mean) @ turn) for part in (mine, rest))
    ask = np.arange(len(mine)) % each < asked
    told = np.array(labels)
    base = np.concatenate([mine[~ask], rest])
    return Instances(base, np.append(told[~ask], np.full(len(rest), -1)), mine[ask], told[ask])


def views(photo: np.ndarray, spots: np.ndarray, draw: np.random.Generator, hard: float) -> np.ndarray:
    """[N, 32, 32, 3]: one around each spot (y, x), bilinear."""
    count, size = len(spots), _SIZE

    def some(most: float, *shape: int) -> np.ndarray:
        return hard * draw.uniform(-most, most, (count, *shape))

    angle, scale, stretch, shear = some(0.5), np.exp(some(0.35)) * _SIDE / size, np.exp(some(0.2)), some(0.2)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    skew = np.zeros((count, 2, 2))
    skew[:, 0, 0], skew[:, 1, 1], skew[:, 0, 1] = stretch, 1 / stretch, shear
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij"), -1).reshape(-1, 2)
    at = np.einsum("nij,pj->npi", turn @ skew * scale[:, None, None], grid) + spots[:, None]
    at += hard * draw.normal(0, _SIDE / 10, (count, 1, 2))
    at = np.clip(at, 0, np.array(photo.shape[:2]) - 1.001)
    low = at.astype(int)
    (y, x), (dy, dx) = np.moveaxis(low, 2, 0), np.moveaxis((at - low)[..., None], 2, 0)
    above = photo[y, x] * (1 - dx) + photo[y, x + 1] * dx
    below = photo[y + 1, x] * (1 - dx) + photo[y + 1, x + 1] * dx
    seen = above * (1 - dy) + below * dy
    seen = np.clip(seen ** np.exp(some(0.3, 1, 1)) * np.exp(some(0.35, 1, 3)), 0, 1)
    return seen.reshape(count, size, size, 3).astype(np.float32)


def features(x: np.ndarray) -> np.ndarray:
    """[N, 344] of views: gradients in 4 x 4 and 2 x 2 cells at two scales, means and deviations of colours."""
    count, grey = len(x), x.mean(-1)
    half = grey.reshape(count, _SIZE // 2, 2, _SIZE // 2, 2).mean((2, 4))
    parts = [part for image in (grey, half) for part in _gradients(image)]
    colours = (x / (x.mean((1, 2), keepdims=True) + 0.05)).reshape(count, 2, _SIZE // 2, 2, _SIZE // 2, 3)
    parts += [0.5 * of((2, 4)).reshape(count, -1) for of in (colours.mean, colours.std)]
    return np.concatenate(parts, 1)


def _gradients(image: np.ndarray) -> list[np.ndarray]:
    dy, dx = image[:, 2:, 1:-1] - image[:, :-2, 1:-1], image[:, 1:-1, 2:] - image[:, 1:-1, :-2]
    size, turn = np.hypot(dy, dx), np.arctan2(dy, dx) / (2 * np.pi) * _TURNS % _TURNS
    low = turn.astype(int) % _TURNS
    share = turn - np.floor(turn)
    directions = np.arange(_TURNS)
    split = (low[..., None] == directions) * ((1 - share) * size)[..., None]
    split += ((low[..., None] + 1) % _TURNS == directions) * (share * size)[..., None]
    parts = []
    for cells in (4, 2):
        edge = image.shape[1] - 2
        each = edge // cells
        cut = split[:, : each * cells, : each * cells].reshape(len(image), cells, each, cells, each, _TURNS)
        sums = cut.sum((2, 4)).reshape(len(image), -1)
        parts.append(np.sqrt(sums / (sums.sum(1, keepdims=True) + 1e-6)))
    return parts


def _unit(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return found
