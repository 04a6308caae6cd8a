"""The kernels for many slots beside their slow truth, and beside torch, at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdall.kv import slot_attention
from holdall.parts.rows import by_rows

SHAPES = [
    (1, 1, 1, 16),
    (2, 3, 3, 64),
    (3, 2, 5, 32),
    (2, 1, 8, 48),
    (5, 4, 4, 16),
]  # slots, heads, groups, numbers


def _case(slots: int, heads: int, groups: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    lot = torch.Generator().manual_seed(slots * d)
    q = torch.randn(slots, heads, groups, d, generator=lot)
    k, v = (torch.randn(slots + 2, 40, heads, d, generator=lot).to(dtype) for _ in range(2))
    return q, k, v


def _flat(x: torch.Tensor) -> np.ndarray:
    found: np.ndarray = (x if x.dtype == torch.float32 else x.view(torch.uint16)).reshape(-1).numpy()
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.125, 2.0])
def test_attention_is_its_naive_form(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> None:
    slots, heads, groups, d = shape
    q, k, v = _case(*shape, dtype)
    rows = np.arange(slots)[::-1] + 1  # in any order, and not the first ones
    ends = np.array([1, 2, 5, 39, 40][:slots])
    firsts = np.array([0, 1, 0, 17, 36][:slots])
    out = np.full((slots * heads, groups, d), np.nan, np.float32)
    for other in range(slots + 2):  # what is not theirs must not be looked at
        for tensor in (k, v):
            mine = [i for i in range(slots) if rows[i] == other]
            tensor[other, ends[mine[0]] if mine else 0 :] = float("nan")
    args = (_flat(k), _flat(v), rows * k.stride(0), np.array(k.stride()[1:3]), firsts, ends, scale, out)
    slot_attention.attend(q.reshape(slots * heads, groups, d).numpy(), *args, 0, slots * heads)
    keys, values = (torch.nan_to_num(t.float()).numpy()[rows] for t in (k, v))
    truth = slot_attention.naive_attend(q.numpy(), keys, values, firsts, ends, scale)
    np.testing.assert_allclose(out.reshape(q.shape), truth, rtol=1e-4, atol=1e-5)


def test_scores_of_any_size_give_weights() -> None:
    """Far below the best one is nothing; nothing overflows."""
    q, k, v = _case(1, 1, 2, 16, torch.float32)
    out = np.zeros((1, 2, 16), np.float32)
    for factor in (1e-6, 1.0, 1e4):
        args = (
            _flat(k * factor),
            _flat(v),
            np.zeros(1, np.int64),
            np.array([16, 16]),
            np.array([0]),
            np.array([40]),
        )
        slot_attention.attend(q.reshape(1, 2, 16).numpy(), *args, 1.0, out, 0, 1)
        keys = (k[:1] * factor).numpy()
        truth = slot_attention.naive_attend(
            q.numpy(), keys, v[:1].numpy(), np.array([0]), np.array([40]), 1.0
        )
        np.testing.assert_allclose(out[None], truth, rtol=1e-3, atol=1e-4)


def test_heads_on_several_threads_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _case(3, 3, 2, 16, torch.float32)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = np.zeros((9, 2, 16), np.float32)
        by_rows(
            slot_attention.attend, 9, 1.0, q.reshape(9, 2, 16).numpy(), _flat(k), _flat(v),
            np.arange(3) * k.stride(0), np.array(k.stride()[1:3]), np.zeros(3, np.int64), np.array([7, 40, 12]),
            1.0, out,
        )  # fmt: skip
        found.append(out)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_written_where_they_belong(dtype: torch.dtype) -> None:
    k, v = (torch.zeros(2, 5, 3, 16, dtype=dtype) for _ in range(2))
    new_k, new_v = (torch.randn(2, 48).to(dtype) for _ in range(2))
    slot_attention.write(_flat(k), _flat(v), _rows(new_k), _rows(new_v), np.array([2 * 48, 5 * 48 + 4 * 48]))
    for held, new in ((k, new_k), (v, new_v)):
        assert torch.equal(held[0, 2], new[0].view(3, 16)) and torch.equal(held[1, 4], new[1].view(3, 16))
        assert int((held != 0).sum()) == 96


def _rows(x: torch.Tensor) -> np.ndarray:
    return _flat(x).reshape(x.shape)
