"""Modules that multiply a few tokens faster compute what they computed before, however many tokens come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from holdall.weights.few_tokens import MOST, FewTokens
from holdall.weights.iavd import Block
from holdall.weights.layout import Piece
from holdall.weights.packed_linear import PackedLinear
from holdall.weights.parts import Part, Pieces, Scratch


def _part(start: int, rows: int, columns: int, rank: int, levels: int) -> tuple[Part, torch.Tensor]:
    rng = np.random.default_rng(start + rows)
    part = Part(Piece(0, start, start + rows, columns, rank, False))
    part.resize(levels)
    whole = torch.zeros(rows, columns)
    for level in range(levels):
        signs = rng.integers(0, 256, (rows, -(-columns // 8))).astype(np.uint8)
        a, b = rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns))
        block = Block(signs, a.astype(np.float16), b.astype(np.float16))
        part.put(level, block)
        whole += block.dense()
    return part, whole


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 128, 129, 300])
@pytest.mark.parametrize("columns", [48, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linears_take_any_number_of_tokens(tokens: int, columns: int, dtype: torch.dtype) -> None:
    (first, top), (second, bottom) = _part(0, 67, columns, 3, 2), _part(67, 5, columns, 1, 4)
    bias, x = torch.randn(72), torch.randn(1, tokens, columns).to(dtype)
    packed = PackedLinear(Pieces([first, second], Scratch()), bias)
    truth = nn.functional.linear(x.float(), torch.cat([top, bottom]), bias)
    loose = 1e-4 if dtype == torch.float32 else 2e-2
    out = packed(x)
    assert out.dtype == dtype and out.shape == (1, tokens, 72)
    torch.testing.assert_close(out.float(), truth, rtol=loose, atol=loose * float(truth.abs().max()))


def test_rows_of_a_piece_are_those_of_the_whole() -> None:
    part, whole = _part(10, 33, 40, 2, 3)
    out = np.full((9, 40), np.nan, np.float32)
    part.dense(out, 24)
    which = np.array([32, 0, 7, 7])
    np.testing.assert_allclose(out, whole[24:33], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(part.rows(which), whole[which], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, MOST, MOST + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_few_tokens_get_what_torch_gives_them(tokens: int, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 37, bias), nn.ReLU(), nn.Linear(37, 16)).to(dtype)
    x = torch.randn(tokens, 1, 64).to(dtype)
    with torch.inference_mode():
        truth = net(x)
        with FewTokens(net):
            out = net(x)
    loose = 1e-5 if dtype == torch.float32 else 1e-2
    assert out.dtype == dtype
    torch.testing.assert_close(out, truth, rtol=loose, atol=loose)


@pytest.mark.parametrize(
    ("dtype", "used"), [(torch.float32, [2, MOST]), (torch.bfloat16, [1, 2, MOST]), (torch.float64, [])]
)
def test_the_kernel_is_used_for_few_tokens_and_only_while_it_is_entered(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, used: list[int]
) -> None:
    from holdall.weights import kernels

    net, seen, few = nn.Linear(32, 8).to(dtype), [], kernels.few
    monkeypatch.setattr(kernels, "few", lambda *a: seen.append(len(a[1])) or few(*a))
    fast = FewTokens(net)
    with torch.inference_mode():
        for tokens in (1, 2, MOST, MOST + 1):
            with fast:
                net(torch.randn(tokens, 32).to(dtype))
            net(torch.randn(tokens, 32).to(dtype))
    assert seen == used and "forward" not in vars(net)
    with pytest.raises(ZeroDivisionError), fast:
        _ = 1 / 0
    assert "forward" not in vars(net)
