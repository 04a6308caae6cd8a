"""Codes in lists, in memory: a query reads some of the lists and sums entries of tables that were made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.parts.codebook import assigned
from holdall.vectors.folder import Change
from holdall.vectors.given import Given, State
from holdall.vectors.metrics import nearest, ready
from holdall.vectors.repconc_tables import Tables
from holdall.vectors.shelf import Shelf
from holdall.vectors.source import Vectors

if TYPE_CHECKING:
    from holdall.vectors.repconc import RepCONC

_NOTHING: dict[str, np.ndarray] = {
    "rows": np.zeros(0, np.int32),
    "keep": np.zeros(0, np.uint8),
    "cross": np.zeros(0, np.uint8),
}


def coded(
    state: Mapping[str, np.ndarray], tables: Tables, vectors: Vectors, recipe: RepCONC
) -> dict[str, np.ndarray]:
    """Of vectors: codes uint8 [N, parts]; owners [N], in the fewest bytes, where there are lists; cross uint8 [N], the
    `products` on the grid, where distances need them."""
    found: dict[str, list[np.ndarray]] = {"codes": []}
    for _, block in vectors.blocks():
        codes, owners, beside = _block(state, tables, ready(block, recipe.metric), recipe.residual)
        found["codes"].append(codes)
        if owners is not None:
            found.setdefault("owners", []).append(owners.astype(owner_type(len(state["centroids"]))))
        if "grid" in state:
            low, step = state["grid"]
            steps = np.rint((products(tables, codes, beside) - low) / step)
            found.setdefault("cross", []).append(np.clip(steps, 0, 255).astype(np.uint8))
    return {n: np.concatenate(a) for n, a in found.items()}


def _block(
    state: Mapping[str, np.ndarray], tables: Tables, x: np.ndarray, residual: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(codes, lists, centroids [N, G W] that the codes are beside), the last two None where there are none."""
    x = tables.ready(x)
    if "centroids" not in state:
        return tables.encode(x), None, None
    owners = assigned(x, state["centroids"])
    beside = state["centroids"][owners] if residual else None
    return tables.encode(x if beside is None else x - beside), owners, beside


def products(tables: Tables, codes: np.ndarray, beside: np.ndarray | None) -> np.ndarray:
    """float32 [N]: twice the products of all that is added up with each other: entries, and what they are beside."""
    groups, layers, _, _ = tables.entries.shape
    cut = codes.reshape(len(codes), groups, layers).astype(np.int64)
    out = np.zeros(len(codes), np.float32)
    for g, books in enumerate(tables.entries if layers == 2 else ()):
        out += (2 * books[0] @ books[1].T)[cut[:, g, 0], cut[:, g, 1]]
    if beside is not None:
        out += 2 * np.einsum("nd,nd->n", beside, tables.decode(codes))
    return out


def grid(state: Mapping[str, np.ndarray], tables: Tables, sample: np.ndarray, recipe: RepCONC) -> np.ndarray:
    """(low, step) of a byte for `products`, with room at both ends for vectors that come later."""
    codes, _, beside = _block(state, tables, sample, recipe.residual)
    found = products(tables, codes, beside)
    low, high = float(found.min()), float(found.max())
    room = 0.05 * (high - low)
    return np.array([low - room, max((high - low + 2 * room) / 255, 1e-20)], np.float32)


def owner_type(lists: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if lists <= 256 else np.uint16 if lists <= 65_536 else np.uint32


def held(state: Mapping[str, np.ndarray]) -> int:
    """Bytes in memory: all that is stored, but a row's number (4 bytes) for its list, and where lists begin.
    Tables that only additions are coded by stay on disk."""
    rest = sum(a.nbytes for n, a in state.items() if n not in ("owners", "coding"))
    lists = len(state["centroids"]) if "centroids" in state else 0
    return rest + (4 * len(state["codes"]) + 8 * (lists + 1) if lists else 0)


def bytes_of(tables: Tables, given: Given, lists: int, metric: str) -> int:
    """What `held` will be, ids and attributes along with it."""
    added = tables.entries.shape[1] == 2 and metric == "l2"
    fixed = tables.entries.nbytes + (0 if tables.rotation is None else tables.rotation.nbytes) + 8 * added
    each = tables.parts + added + 4 * (lists > 1)
    listed = (4 * tables.wide + 8) * lists + 8 if lists > 1 else 0
    return fixed + listed + given.vectors.count * each + given.beside


class CodeLists(Shelf):
    """Codes in the order of their lists, and the row of each; in the order of rows where there is one list."""

    scored = 0

    def load(self) -> None:
        folder = self.folder
        state = {
            "entries": folder.array("entries", np.float32, 4),
            "codes": folder.array("codes", np.uint8, 2),
        }
        for name, dtype, axes in (
            ("rotation", np.float32, 2),
            ("centroids", np.float32, 2),
            ("grid", np.float32, 1),
        ):
            if name in folder.arrays:
                state[name] = folder.array(name, dtype, axes)
        self.tables = Tables.of(state["entries"], state.get("rotation"), None, self.dim)
        if "centroids" in state:
            state["owners"] = folder.array("owners", owner_type(len(state["centroids"])), 1)
        if "grid" in state:
            state["cross"] = folder.array("cross", np.uint8, 1)
        if not self._fits(state):
            raise CorruptArtefact(folder.url, "its lists contradict each other")
        self._size, self._state = held(state), state
        self._arrange(state.pop("owners", None), state.pop("codes"), state.pop("cross", _NOTHING["cross"]))

    def _fits(self, state: Mapping[str, np.ndarray]) -> bool:
        codes, layers = state["codes"], state["entries"].shape[1]
        fits = codes.shape == (self.count, self.tables.parts)
        fits = fits and (not codes.size or int(codes.max()) < state["entries"].shape[2])
        fits = fits and ("grid" in state) == (
            self.recipe.metric == "l2" and (layers == 2 or (self.recipe.residual and "centroids" in state))
        )
        if "grid" in state:
            fits = fits and state["grid"].shape == (2,) and bool((np.abs(state["grid"]) < 1e30).all())
            fits = fits and state["cross"].shape == (self.count,)
        if "centroids" in state:
            centroids, owners = state["centroids"], state["owners"]
            fits = fits and centroids.shape[1] == self.tables.wide and len(centroids) > 0
            fits = fits and bool((np.abs(centroids) < 1e15).all()) and owners.shape == (self.count,)
            fits = fits and (not owners.size or int(owners.max()) < len(centroids))
        return bool(fits)

    def _arrange(self, owners: np.ndarray | None, codes: np.ndarray, cross: np.ndarray) -> None:
        self.rows: np.ndarray = _NOTHING["rows"]
        self.starts = np.array([0, self.count])
        if owners is not None:
            order = np.argsort(owners, kind="stable")
            self.rows = order.astype(np.int32)
            ends = np.bincount(owners, minlength=len(self._state["centroids"]))
            self.starts = np.concatenate([[0], np.cumsum(ends)])
            codes, cross = codes[order], cross[order] if len(cross) else cross
        self.codes, self.cross = np.ascontiguousarray(codes), np.ascontiguousarray(cross)

    def least(self, own: State) -> int:
        return held(own[0])

    def held(self) -> int:
        return self._size

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """A condition is answered from all lists: few vectors may be left, in any of them."""
        from holdall.vectors.codes_scan import nearest_codes

        metric, found = self.recipe.metric, np.full((len(queries), k), -1)
        keys = np.full((len(queries), k), np.inf, np.float32)
        asked = self.tables.ready(queries)
        probed = self._probed(asked, keep is not None)
        low, step = self._state["grid"] if "grid" in self._state else (np.float32(0), np.float32(0))
        sizes = self._sizes() if metric == "l2" else np.float32(0)
        bits = _NOTHING["keep"] if keep is None else np.packbits(keep, bitorder="little")
        bases, starts = np.take_along_axis(self._bases(asked), probed, 1), self.starts[None]
        for i, query in enumerate(asked):
            table = self.tables.products(query[None])[0] * (-2 if metric == "l2" else -1) + sizes
            self.scored += nearest_codes(
                table.astype(np.float32), probed[i], bases[i], starts, self.codes, self.cross, low, step, self.rows,
                bits, keep is not None, keys[i], found[i],
            )  # fmt: skip
        if len(self.rows):
            found = np.where(found < 0, -1, self.rows[found])
        if metric == "l2":
            keys = np.sqrt(np.maximum(keys + np.square(asked).sum(1, keepdims=True), 0))
        return np.where(found < 0, np.inf, keys + (metric == "cosine")).astype(np.float32), found

    def _probed(self, asked: np.ndarray, whole: bool) -> np.ndarray:
        lists = len(self.starts) - 1
        most = max(1, round(self.recipe.probes * lists))
        if whole or most >= lists:
            return np.broadcast_to(np.arange(lists), (len(asked), lists))
        kind = "l2" if self.recipe.metric == "l2" else "ip"
        return nearest(asked, self._state["centroids"], most, kind)[1]

    def _bases(self, asked: np.ndarray) -> np.ndarray:
        """float32 [Q, lists]: what each list's centroid adds to the sums of its codes."""
        if not self.recipe.residual or "centroids" not in self._state:
            return np.zeros((len(asked), len(self.starts) - 1), np.float32)
        centroids = self._state["centroids"]
        found: np.ndarray = asked @ centroids.T
        return np.square(centroids).sum(1) - 2 * found if self.recipe.metric == "l2" else -found

    def decoded(self) -> np.ndarray:
        """float32 [N, G W]: what codes stand for, in the order of lists (`rows` has their rows)."""
        found = self.tables.decode(self.codes)
        if self.recipe.residual and "centroids" in self._state:
            found += np.repeat(self._state["centroids"], np.diff(self.starts), axis=0)
        return found

    def _sizes(self) -> np.ndarray:
        """float32 [parts, K]: of each entry."""
        found: np.ndarray = np.square(self._state["entries"]).sum(-1).reshape(self.tables.parts, -1)
        return found

    def traffic(self) -> Mapping[str, float]:
        return {**super().traffic(), "distances": float(self.scored)}

    def _stored(self) -> dict[str, np.ndarray]:
        names = ("entries", "codes", "rotation", "centroids", "grid", "owners", "cross", "coding")
        return {n: self.folder.arrays[n] for n in names if n in self.folder.arrays}

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        state = self._stored()
        coding = self.folder.array("coding", np.float32, 4) if "coding" in state else None
        tables = Tables.of(self.tables.entries, self.tables.rotation, coding, self.dim)
        new = coded(state, tables, vectors, self.recipe)
        return state | {n: np.concatenate([state[n], a]) for n, a in new.items()}, {}

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        state = self._stored()
        return state | {n: state[n][keep] for n in ("codes", "owners", "cross") if n in state}, {}
