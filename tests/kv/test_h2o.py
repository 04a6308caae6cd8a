"""H2O: sums over all queries, half of the room for the latest, and judging goes on while tokens are generated."""

from __future__ import annotations

import torch

from holdall import Budget
from holdall.kv import H2O, Entries


def entries(t: int = 60, seed: int = 0) -> Entries:
    lot = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, t, 8, generator=lot).unbind(0)
    return Entries(keys=keys, values=values, queries=torch.randn(1, 6, t, 8, generator=lot) * 2)


def sums(x: Entries) -> torch.Tensor:
    """The columns of the causal attention matrix, added up over queries and group, [1, H, T]."""
    assert x.queries is not None
    t = x.count
    asked = x.queries.view(1, 2, 3, t, 8)
    scores = asked @ x.keys[:, :, None].transpose(3, 4) / 8**0.5
    causal = torch.ones(t, t, dtype=torch.bool).tril()
    return scores.masked_fill(~causal, -torch.inf).softmax(-1).sum((2, 3))


def test_the_heaviest_and_the_latest_stay() -> None:
    x, truth = entries(), sums(entries())
    y = H2O().select(x, 20 * H2O().each(x))
    assert y.count == 20 and y.mass is not None
    for head in range(2):
        heavy = truth[0, head, :50].topk(10).indices.sort().values.tolist()
        assert y.where()[0, head].tolist() == [*heavy, *range(50, 60)]
        torch.testing.assert_close(y.mass[0, head], truth[0, head, y.where()[0, head].long()])


def test_mass_is_paid_for_out_of_the_budget() -> None:
    x = entries()
    limit = 20 * x.each
    y = H2O().select(x, limit)
    assert y.nbytes <= limit and y.count == limit // (x.each + 2 * 4)


def test_generated_tokens_are_judged_and_one_goes_for_each_that_comes() -> None:
    x = entries()
    limit = 20 * H2O().each(x)
    y, lot = H2O().select(x, limit).held(), torch.Generator().manual_seed(9)
    looked_at = y.where()[0, :, 3].tolist()
    y = y.but(keys=y.keys.index_fill(2, torch.tensor([3]), 3.0))
    for step in range(30):
        y = y.append(*torch.randn(2, 1, 2, 1, 8, generator=lot).unbind(0))
        query = torch.full((1, 6, 1, 8), 3.0)  # all heads look at that one entry
        y = y.but(queries=query, query_positions=torch.tensor([[60 + step]]))
        y = H2O().settle(y, Budget(bytes=limit)).held()
        assert y.count == 20 and y.nbytes <= limit and y.tokens == 61 + step
    for head, column in enumerate(looked_at):
        kept = y.where()[0, head].tolist()
        assert column in kept and kept[-10:] == list(range(80, 90))
        assert y.mass[0, head, kept.index(column)] > 29
