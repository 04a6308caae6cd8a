"""A drive that attends: it owns the keys and values in its pages, and answers queries with what attention gives.

Keys lie there twice. Token-indexed, a page has consecutive tokens of one head; channel-indexed, a few neighbouring
channels of many consecutive tokens. New tokens wait in a buffer until they fill pages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from holdall.kv.flash import Flash, lanes_of

TYPES = {16: np.float16, 32: np.float32}


class Drive:
    """Keys and values of some heads, for all layers and rows. `spec` is what `InstInfer` and its artefact say."""

    def __init__(self, spec: Mapping[str, Any], folder: str):
        self.spec, self.dtype = spec, np.dtype(TYPES[spec["bits"]])
        self.rows, self.heads, self.dim = spec["rows"], spec["heads"], spec["dim"]
        self.flash = Flash(folder, spec["lanes"], spec["page"])
        self.group = spec["page"] // (self.dim * self.dtype.itemsize)  # tokens of a token-indexed page
        self.wide = spec["page"] // (
            spec["columns"] * self.dtype.itemsize
        )  # tokens of a channel-indexed page
        self.layers = [_Layer(self) for _ in range(spec["layers"])]
        self.cpu_seconds = 0.0  # of answering
        self.counts = dict.fromkeys(
            (
                "channel_pages",
                "key_pages",
                "value_pages",
                "dense_pages",
                "wanted_bytes",
                "busiest_pages",
                "flops",
                "steps",
            ),
            0,
        )

    def append(self, layer: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Hold newer tokens, [B, H, T, D]."""
        self.layers[layer].append(keys.astype(self.dtype), values.astype(self.dtype))

    def attend(self, layer: int, queries: np.ndarray) -> np.ndarray:
        """What the queries [B, H, G, D] get, [B, H, G, D] float32."""
        x, before, start = self.layers[layer], self.flash.read_by_lane.copy(), time.process_time()
        out = np.empty(queries.shape, np.float32)
        for b in range(self.rows):
            for h in range(self.heads):
                out[b, h] = x.attend(b, h, queries[b, h].astype(np.float32))
        self.cpu_seconds += time.process_time() - start
        self.counts["steps"] += 1
        self.counts["busiest_pages"] += int((self.flash.read_by_lane - before).max())
        return out

    def traffic(self) -> dict[str, float | str]:
        pages = self.counts["channel_pages"] + self.counts["key_pages"] + self.counts["value_pages"]
        return {
            **self.counts,
            "pages_read": pages,
            "pages_written": self.flash.written,
            "cpu_seconds": f"{self.cpu_seconds:016.6f}",  # of one width: what crosses the link is counted
        }

    def close(self) -> None:
        self.flash.close()


class _Layer:
    """One layer: buffers, look-up tables of both indices, and the mean of the values."""

    def __init__(self, drive: Drive):
        self.drive, shape = drive, (drive.rows, drive.heads)
        self.keys = np.zeros((*shape, 0, drive.dim), drive.dtype)  # tokens from `wide_done` on
        self.values = np.zeros((*shape, 0, drive.dim), drive.dtype)  # tokens from `done` on
        self.total = np.zeros((*shape, drive.dim), np.float64)  # of all values
        self.count = self.done = self.wide_done = 0
        self.key_at = np.zeros((*shape, 0), np.int64)  # [B, H, groups]
        self.value_at = np.zeros((*shape, 0), np.int64)
        parts = drive.dim // drive.spec["columns"]
        self.channel_at = np.zeros((*shape, 0, parts), np.int64)  # [B, H, wide groups, channel groups]

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys = np.concatenate([self.keys, keys], axis=2)
        self.values = np.concatenate([self.values, values], axis=2)
        self.total += values.sum(2, dtype=np.float64)
        self.count += keys.shape[2]
        groups = (self.count - self.done) // self.drive.group
        if groups:
            self._flush(groups)
        wide = (self.count - self.wide_done) // self.drive.wide if self.drive.spec["copy"] else 0
        if wide:
            self._flush_channels(wide)

    def _flush(self, groups: int) -> None:
        """Token-indexed pages of keys and values."""
        d, size = self.drive, groups * self.drive.group
        behind = self.done - self.wide_done
        keys, values = self.keys[:, :, behind : behind + size], self.values[:, :, :size]
        first = self.done // d.group
        at = np.broadcast_to(np.arange(first, first + groups), (d.rows, d.heads, groups))
        self.key_at = np.concatenate([self.key_at, self._written(keys.reshape(*at.shape, -1), at, 0)], axis=2)
        self.value_at = np.concatenate(
            [self.value_at, self._written(values.reshape(*at.shape, -1), at, 1)], axis=2
        )
        self.values = self.values[:, :, size:].copy()
        self.done += size
        if not d.spec["copy"]:
            self.keys, self.wide_done = self.keys[:, :, size:].copy(), self.done

    def _flush_channels(self, wide: int) -> None:
        d, size = self.drive, wide * self.drive.wide
        parts = self.channel_at.shape[3]
        cut = self.keys[:, :, :size].reshape(d.rows, d.heads, wide, d.wide, parts, -1)
        pages = cut.transpose(0, 1, 2, 4, 5, 3)  # [B, H, wide, parts, columns, tokens]
        first = self.wide_done // d.wide
        at = np.arange(first, first + wide)[:, None] + np.arange(parts)
        at = np.broadcast_to(at, (d.rows, d.heads, wide, parts))
        self.channel_at = np.concatenate(
            [self.channel_at, self._written(pages.reshape(*at.shape, -1), at, 2)], axis=2
        )
        self.keys = self.keys[:, :, size:].copy()
        self.wide_done += size

    def _written(self, pages: np.ndarray, groups: np.ndarray, kind: int) -> np.ndarray:
        d = self.drive
        raw = np.ascontiguousarray(pages).view(np.uint8).reshape(-1, d.flash.page)
        lanes = lanes_of(groups.reshape(-1), d.flash.lanes, d.spec["placement"], d.flash.written + kind)
        return d.flash.write(raw, lanes).reshape(groups.shape)

    def attend(self, b: int, h: int, q: np.ndarray) -> np.ndarray:
        """One key/value head: q [G, D] of its query heads."""
        d, spec = self.drive, self.drive.spec
        d.counts["dense_pages"] += 2 * self.key_at.shape[2]
        if self.count <= spec["dense"]:
            every = np.arange(self.count)
            d.counts["flops"] += 4 * len(q) * self.count * d.dim
            return _softmax(q @ self._keys(b, h, every).T / np.sqrt(d.dim)) @ self._values(b, h, every)
        r = max(1, round(spec["channels"] * d.dim))
        size = np.abs(q) / np.abs(q).sum(1, keepdims=True).clip(1e-30)  # [G, D] each head's shares
        chosen = np.sort(np.argsort(-size.mean(0), kind="stable")[:r])
        kept = np.abs(q[:, chosen]).sum(1) / np.abs(q).sum(1).clip(1e-30)  # [G]
        whole = None if spec["copy"] else self._keys(b, h, np.arange(self.count))
        some = self._channels(b, h, chosen) if whole is None else whole[:, chosen]  # [S, r]
        guess = _softmax(q[:, chosen] @ some.T / np.sqrt(d.dim * kept.clip(1e-30))[:, None])  # [G, S]
        j = self._attended(guess.mean(0))
        d.counts["flops"] += len(q) * (2 * self.count * r + 4 * len(j) * d.dim)
        alpha = guess[:, j].sum(1, keepdims=True)
        keys = self._keys(b, h, j) if whole is None else whole[j]
        near = _softmax(q @ keys.T / np.sqrt(d.dim)) @ self._values(b, h, j)
        return alpha * near + (1 - alpha) * (self.total[b, h] / self.count).astype(np.float32)

    def _attended(self, worth: np.ndarray) -> np.ndarray:
        """Which tokens, ascending: those of most worth [S], or all tokens of the pages of most worth."""
        spec, unit = self.drive.spec, self.drive.group if self.drive.spec["by"] == "page" else 1
        worth[self.count - min(spec["local"], self.count) :] = np.inf
        worth = np.add.reduceat(worth, np.arange(0, self.count, unit))
        stay = int(np.isinf(worth).sum())
        wanted = max(stay + 1, int(np.ceil(spec["tokens"] * len(worth))))
        units = np.sort(np.argsort(-worth, kind="stable")[:wanted])
        j = (units[:, None] * unit + np.arange(unit)).reshape(-1)
        return j[j < self.count]

    def _channels(self, b: int, h: int, chosen: np.ndarray) -> np.ndarray:
        """Those channels of all keys, [S, r]: pages of groups that have one, and the buffer."""
        d, columns = self.drive, self.drive.spec["columns"]
        parts = np.unique(chosen // columns)
        at = self.channel_at[b, h][:, parts]  # [wide groups, parts]
        pages = d.flash.read(at.reshape(-1)).view(d.dtype).reshape(*at.shape, columns, d.wide)
        d.counts["channel_pages"] += at.size
        d.counts["wanted_bytes"] += self.wide_done * len(chosen) * d.dtype.itemsize
        picked = pages[
            :, np.searchsorted(parts, chosen // columns), chosen % columns
        ]  # [wide groups, r, tokens]
        stored = picked.transpose(0, 2, 1).reshape(-1, len(chosen))
        return np.concatenate([stored, self.keys[b, h][:, chosen]]).astype(np.float32)

    def _keys(self, b: int, h: int, j: np.ndarray) -> np.ndarray:
        """[K, D] of tokens j, ascending; what still waits for channel-indexed pages is in the buffer."""
        return self._tokens(
            self.key_at[b, h], self.keys[b, h], min(self.wide_done, self.done), self.wide_done, j, "key_pages"
        )

    def _values(self, b: int, h: int, j: np.ndarray) -> np.ndarray:
        return self._tokens(self.value_at[b, h], self.values[b, h], self.done, self.done, j, "value_pages")

    def _tokens(
        self, table: np.ndarray, buffer: np.ndarray, until: int, first: int, j: np.ndarray, name: str
    ) -> np.ndarray:
        d = self.drive
        stored, waiting = j[j < until], j[j >= until]
        groups = np.unique(stored // d.group)
        pages = d.flash.read(table[groups]).view(d.dtype).reshape(len(groups), d.group, d.dim)
        d.counts[name] += len(groups)
        d.counts["wanted_bytes"] += len(stored) * d.dim * d.dtype.itemsize
        found = pages[np.searchsorted(groups, stored // d.group), stored % d.group]
        return np.concatenate([found, buffer[waiting - first]]).astype(np.float32)


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)
