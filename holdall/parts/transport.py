"""Optimal transport with equal shares: which column each point takes when all have to be taken alike. Needs torch."""

from __future__ import annotations

import torch
from torch import Tensor

from holdall.errors import BadInput

_REACH = 690.0  # exp of more than that is no number of 64 bits


def centred(costs: Tensor) -> Tensor:
    """Costs [..., B, K] in float64 between -1 and 1, so that a smoothing means the same for each table of them."""
    costs = costs.double()
    high, low = costs.amax((-2, -1), keepdim=True), costs.amin((-2, -1), keepdim=True)
    middle = (high + low) / 2
    return (costs - middle) / (high - middle + 1e-5)


def shares(costs: Tensor, smoothing: float = 0.003, rounds: int = 100, slack: float = 0.0) -> Tensor:
    """How much of each point goes to each column: float64 [..., B, K], each row sums to 1, each column nears B / K.

    Sinkhorn's rounds on `centred` costs. The smaller the smoothing, the nearer each row's greatest share is to 1: only
    then does taking it keep columns equal. slack: rounds end where no column is further than that share from B / K.
    """
    if not (smoothing > 0 and rounds >= 1 and slack >= 0):
        raise BadInput(
            "transport", f"{smoothing}, {rounds}, {slack}", "smoothing > 0, rounds >= 1, slack >= 0"
        )
    if costs.dim() < 2 or not bool(torch.isfinite(costs).all()):
        raise BadInput("costs", f"{tuple(costs.shape)}", "finite numbers [..., points, columns]")
    if not costs.numel():
        return costs.double()
    if 2 / smoothing > _REACH:
        return naive_shares(costs, smoothing, rounds, slack)
    even = centred(costs)
    # a row's factor is free, so its smallest cost may be taken off: 1 is then the greatest number of each row
    kernels = ((even.amin(-1, keepdim=True) - even) / smoothing).exp_()  # [..., B, K]
    for kernel in kernels.view(-1, *kernels.shape[-2:]):  # one by one: a table stays in the processor's cache
        _balance(kernel, rounds, slack)
    return kernels


def _balance(kernel: Tensor, rounds: int, slack: float) -> None:
    points, columns = kernel.shape
    right = kernel.new_ones(columns)
    for done in range(1, rounds + 1):
        left = 1 / (kernel @ right)  # [B]
        sums = (left @ kernel) * right  # [K]
        if slack and done % 5 == 0 and bool((sums * columns / points - 1).abs().max() <= slack):
            break
        right = right * (points / columns) / sums
    kernel.mul_(right)
    kernel.div_(kernel.sum(-1, keepdim=True))


def naive_shares(costs: Tensor, smoothing: float = 0.003, rounds: int = 100, slack: float = 0.0) -> Tensor:
    """The same by logarithms, several times slower; no smoothing is too small for it."""
    logs = -centred(costs) / smoothing
    points, columns = logs.shape[-2:]
    want = torch.log(torch.tensor(points / columns, dtype=torch.float64))
    logs = logs.log_softmax(-1)
    for done in range(1, rounds + 1):
        sums = logs.logsumexp(-2, keepdim=True)
        if slack and done % 5 == 0 and bool(((sums - want).exp() - 1).abs().max() <= slack):
            break
        logs = (logs - sums + want).log_softmax(-1)
    return logs.exp()


def capped(shares: Tensor, most: int) -> Tensor:
    """int64 [..., B]: each point's greatest share among columns that have room, of which none takes more than `most`.

    Greatest shares alone leave columns uneven wherever a point is split. Here points ask for their columns in the order
    of their shares, and a full column keeps those that want it most: no two would rather change places.
    """
    points, columns = shares.shape[-2:]
    if most * columns < points:
        raise BadInput("room", f"{most} in each of {columns} columns", f"room for {points} points")
    found = [_placed(table, most) for table in shares.reshape(-1, points, columns)]
    return torch.stack(found).view(shares.shape[:-1]) if found else shares.new_zeros(shares.shape[:-1]).long()


def _placed(shares: Tensor, most: int) -> Tensor:
    from holdall.parts.placing import placed

    order = shares.sort(dim=-1, descending=True, stable=True).indices
    codes = torch.empty(len(shares), dtype=torch.long)
    placed(shares.cpu().double().numpy(), order.cpu().numpy(), most, codes.numpy())
    return codes.to(shares.device)


def naive_placed(shares: Tensor, most: int) -> Tensor:
    """The same by rounds, in which all who were turned away ask at once."""
    open_to = shares.clone()
    while True:
        codes = open_to.argmax(-1)
        over = (torch.bincount(codes, minlength=shares.shape[1]) > most).nonzero()[:, 0].tolist()
        if not over:
            return codes
        for column in over:
            asking = (codes == column).nonzero()[:, 0]
            order = shares[asking, column].argsort(descending=True, stable=True)
            open_to[asking[order[most:]], column] = -1.0


def imbalance(codes: Tensor, columns: int) -> Tensor:
    """Mean of |1 - n / (B / K)| over the columns, for codes [..., B]: 0 where all are used alike, below 2."""
    return (1 - counts(codes, columns) * columns / codes.shape[-1]).abs().mean(-1)


def entropy(codes: Tensor, columns: int) -> Tensor:
    """Bits that a code carries, for codes [..., B]: log2 of the columns where all are used alike."""
    share = counts(codes, columns) / codes.shape[-1]
    return -(share * share.clamp(min=1e-300).log2()).sum(-1)


def counts(codes: Tensor, columns: int) -> Tensor:
    """float64 [..., K]: how often each column is taken by codes [..., B]."""
    found = torch.zeros((*codes.shape[:-1], columns), dtype=torch.float64, device=codes.device)
    return found.scatter_add_(-1, codes.long(), torch.ones_like(codes, dtype=torch.float64))
