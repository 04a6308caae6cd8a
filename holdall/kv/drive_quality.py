"""A small run for the checks of `kv.instinfer`, and what attention on a drive costs a model in answers and in pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from holdall.kv.drive_model import Task


def rehearsed() -> tuple[Task, list[Any]]:
    """Two layers; a prompt of 1,500 tokens of which some matter, and 6 tokens after it."""
    task, lot = Task(layers=2, heads=2, dim=64, length=1600), np.random.default_rng(0)
    steps: list[Any] = []
    for layer in range(2):
        steps.append((layer, None, *planted(lot, 1500)))
    for _ in range(6):
        for layer in range(2):
            q = lot.normal(size=(1, 2, 3, 64)) * np.exp(lot.normal(size=64))
            steps.append((layer, q, *lot.normal(size=(2, 1, 2, 1, 64))))
    return task, steps


def measure(
    method: Any, budget: Any = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Any:
    """Answers, perplexity, pages and link: see `holdall.kv.drive_asking`. The budget does not change what is read."""
    from holdall.kv.drive_asking import measured
    from holdall.kv.quality import _text

    return measured(method, model or "smollm2", _text(on), on or "needle", 1 if quick else 3)


def planted(
    lot: np.random.Generator, tokens: int, heads: int = 2, dim: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Keys with runs of tokens that stand out, and values, [1, H, T, D]."""
    keys, values = lot.normal(size=(2, 1, heads, tokens, dim))
    for start in lot.integers(0, max(1, tokens - 16), 6):
        keys[:, :, start : start + 12] *= 3
    return keys, values
