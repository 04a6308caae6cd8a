"""From documents to codes: what is learned of a sample, what a document's vectors become, which of them are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.parts.codebook import ProductQuantiser, assigned, kmeans
from holdall.vectors.documents import Documents, split, streamed
from holdall.vectors.late import Ends, Fine, Sets, distinct
from holdall.vectors.metrics import ready
from holdall.vectors.salience import kept, norms, rarity

if TYPE_CHECKING:
    from holdall.vectors.hpc_colpali import HPCColPali
    from holdall.vectors.late_plan import Plan
    from holdall.vectors.source import Vectors

hamming: Any = lazy("holdall.vectors.hamming", extra="vectors")

ROUNDS = 20


@dataclass
class Codebook:
    """centroids float32 [2**width, D]; rare [K]: salience of a vector by its centroid."""

    centroids: np.ndarray
    rare: np.ndarray
    quantiser: ProductQuantiser | None

    @property
    def width(self) -> int:
        return len(self.centroids).bit_length() - 1

    @property
    def nbytes(self) -> int:
        """Without the quantiser's."""
        return self.centroids.nbytes + self.rare.nbytes

    @classmethod
    def learn(cls, recipe: HPCColPali, given: Vectors, plan: Plan) -> Codebook:
        x = sample(recipe, given)
        cosine = recipe.metric == "cosine"
        centroids = kmeans(x, plan.centroids, seed=recipe.seed, rounds=ROUNDS, spherical=cosine)
        if recipe.scoring == "hamming" and recipe.labels != "raw":
            labels = hamming.tree_labels(centroids)
            if recipe.labels == "swapped":
                counts = np.bincount(assigned(x, centroids), minlength=plan.centroids)
                labels = hamming.swapped(labels, centroids, counts)
            centroids = centroids[np.argsort(labels)]  # a centroid's number is its bits
        quantiser = None
        if plan.subspaces:
            quantiser = ProductQuantiser.learn(x, plan.subspaces, seed=recipe.seed, rounds=ROUNDS)
        return cls(centroids, np.ones(plan.centroids, np.float32), quantiser)

    @classmethod
    def read(cls, folder: Any, dim: int, quantiser: ProductQuantiser | None) -> Codebook:
        centroids, rare = folder.array("centroids", np.float32, 2), folder.array("rare", np.float32, 1)
        count = len(centroids)
        fits = centroids.shape[1] == dim and 2 <= count <= 512 and count & (count - 1) == 0
        fits &= rare.shape == (count,)
        if not fits or not (np.isfinite(centroids).all() and np.isfinite(rare).all()):
            raise CorruptArtefact(folder.url, "its centroids contradict each other")
        return cls(centroids, rare, quantiser)

    def stored(self) -> dict[str, np.ndarray]:
        return {"centroids": self.centroids, "rare": self.rare}


def sample(recipe: HPCColPali, given: Vectors) -> np.ndarray:
    """float32 [n, D]: vectors to learn from, drawn by lot, none of zeros where there are others."""
    draw = np.random.default_rng(recipe.seed)
    if isinstance(given, Documents):
        there = np.arange(given.rows.count) if given.salience is None else _real(given.salience)
        x = given.rows.take(np.sort(draw.permutation(there)[: recipe.sample]))
    else:
        rows = np.sort(draw.permutation(given.count)[: -(-recipe.sample // recipe.patches)])
        x = given.take(rows).reshape(-1, given.dim // recipe.patches)
    x = ready(x, recipe.metric)
    real = x.any(1)
    return x[real] if real.any() else x


def _real(salience: np.ndarray) -> np.ndarray:
    """Numbers of the vectors that are no padding; of all where there are no others."""
    found = np.flatnonzero(salience > -np.inf)
    return found if len(found) else np.arange(len(salience))


def coded(
    recipe: HPCColPali, book: Codebook, given: Vectors, first: bool
) -> tuple[Codebook, Sets, Fine | None]:
    """All documents as codes, a block at a time. first: rarity is learned of them, too; in a pass of its own where it
    says what is kept."""
    if first and recipe.keep_docs < 1 and recipe.salience in ("auto", "idf"):
        plain = recipe.but(keep_docs=1.0)
        parts = (_kept_codes(plain, book, part)[0] for part in streamed(given, recipe.patches))
        book = _rare(book, parts, given.count)
    codes, counts, fine, sizes = [], [], [], []
    for part in streamed(given, recipe.patches):
        (flat, each), left, product = _kept_codes(recipe, book, part)
        codes.append(flat)
        counts.append(each)
        sizes.append(left)
        fine.append(product)
    if first and recipe.keep_docs == 1:
        book = _rare(book, zip(codes, counts, strict=True), given.count)
    sets = Sets.of(np.concatenate(codes), np.concatenate(counts), book.width)
    if book.quantiser is None:
        return book, sets, None
    return book, sets, Fine(book.quantiser, Ends.of(np.concatenate(sizes)), np.concatenate(fine))


def _rare(book: Codebook, parts: Iterable[tuple[np.ndarray, np.ndarray]], count: int) -> Codebook:
    held = sum(np.bincount(flat, minlength=len(book.centroids)) for flat, _ in parts)
    return replace(book, rare=rarity(np.asarray(held), count))


def _kept_codes(
    recipe: HPCColPali, book: Codebook, part: Documents
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """(`distinct` codes of what is kept, vectors that each document keeps, product codes of these)."""
    rows = part.rows.read(0, part.rows.count)
    x = ready(rows, recipe.metric)
    codes, told = assigned(x, book.centroids), weights(recipe, part, rows)
    keep = kept(np.where(np.isnan(told), book.rare[codes], told), part.offsets, recipe.keep_docs)
    sizes = np.add.reduceat(keep, part.offsets[:-1])
    left = np.concatenate([[0], np.cumsum(sizes)])
    fine = np.zeros((0, 1), np.uint8) if book.quantiser is None else book.quantiser.encode(x[keep])
    return distinct(codes[keep], left, len(book.centroids)), sizes, fine


def weights(recipe: HPCColPali, part: Documents, rows: np.ndarray) -> np.ndarray:
    """float32 [R]: salience, -inf for padding and for the vectors that `sinks` drops, NaN where the centroid tells
    it."""
    if recipe.salience == "given" and part.salience is None:
        raise BadInput("salience", "none", "a number for each vector, or --salience auto, idf or norm")
    if part.salience is not None and recipe.salience in ("auto", "given"):
        found = part.salience.copy()
    elif recipe.salience == "norm":
        found = norms(rows)
    else:
        found = np.full(len(rows), np.nan, np.float32)
    if part.salience is not None:
        found[np.isneginf(part.salience)] = -np.inf
    found[~rows.any(1)] = -np.inf
    place = np.arange(len(rows)) - np.repeat(part.offsets[:-1], np.diff(part.offsets))
    found[place < recipe.sinks] = -np.inf
    return found


def asked(recipe: HPCColPali, book: Codebook, given: Any, dim: int) -> list[np.ndarray]:
    """float32 [n, D] of each query: its vectors as they are compared, without those that are not salient."""
    part = questions(recipe, given, dim)
    if part is None:
        return []
    rows = part.rows.read(0, part.rows.count)
    x, found = ready(rows, recipe.metric), weights(recipe, part, rows)
    codes = None
    if recipe.scoring == "symmetric" or recipe.keep_query < 1:
        codes = assigned(x, book.centroids)
        found = np.where(np.isnan(found), book.rare[codes], found)
    keep = kept(np.nan_to_num(found, nan=0.0, neginf=-np.inf), part.offsets, recipe.keep_query)
    if recipe.scoring == "symmetric":
        fine = book.quantiser
        x = book.centroids[codes] if fine is None else fine.decode(fine.encode(x))
    left = np.cumsum(np.add.reduceat(keep, part.offsets[:-1]))
    return np.split(x[keep], left[:-1])


def questions(recipe: HPCColPali, given: Any, dim: int) -> Documents | None:
    """Queries in any of their forms: documents, a list of arrays [n, D], an array [Q, n, D], or rows as plain
    vectors are."""
    from holdall.vectors.metrics import asked as plain
    from holdall.vectors.source import Vectors

    each = dim // recipe.patches
    if not isinstance(given, Documents):
        listed = isinstance(given, list | tuple) and len(given) > 0 and np.ndim(given[0]) == 2
        if not listed and np.ndim(given) != 3:
            rows = plain(given, dim, "ip")
            return split(Vectors.of(rows), recipe.patches, 0, len(rows)) if len(rows) else None
        if not len(given):
            return None
        given = Documents.of(given)
    if given.dim != each:
        raise BadInput("queries", f"vectors of {given.dim} numbers", f"of {each}, as the index has")
    return given
