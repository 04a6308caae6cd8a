"""Gradual magnitude pruning: masks that grow by the cubic schedule while a model is trained, in anybody's loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")


def scheduled(step: int, final: float, start: int, steps: int) -> float:
    """Sparsity after `step` steps: from 0 at `start` to `final` `steps` later, fast first."""
    if step < start:
        return 0.0
    left = 1 - min(step - start, steps) / steps if steps else 0.0
    return final - final * left**3


def prunable(module: torch.nn.Module) -> dict[str, Any]:
    """Path -> layer: 1x1 convolutions and linears, without the first and the last layer that has weights.

    Depthwise and larger convolutions, the first and the last layer hold little and lose much.
    """
    layers = {
        path: owner
        for path, owner in module.named_modules()
        if isinstance(owner, torch.nn.Conv2d | torch.nn.Linear)
    }
    uses: dict[int, int] = {}
    for owner in module.modules():
        weight = getattr(owner, "weight", None)
        uses[id(weight)] = uses.get(id(weight), 0) + 1
    inner = list(layers.items())[1:-1]
    return {path: owner for path, owner in inner if _pointwise(owner) and uses[id(owner.weight)] == 1}


def _pointwise(owner: Any) -> bool:
    return isinstance(owner, torch.nn.Linear) or (owner.kernel_size == (1, 1) and owner.groups == 1)


def matrix(owner: Any) -> torch.Tensor:
    """The weights as [O, I], without a copy."""
    return owner.weight.detach().view(len(owner.weight), -1)


def sparsity_of(layers: dict[str, Any]) -> float:
    """Share of these layers' weights that is 0."""
    zeros = sum(int((matrix(owner) == 0).sum()) for owner in layers.values())
    return zeros / sum(owner.weight.numel() for owner in layers.values())


def cuts(rows: int, block: int) -> list[tuple[int, int, int]]:
    """(first row, last row, rows in a group): whole groups of `block` rows, then single ones."""
    whole = rows // block * block
    return [(a, b, n) for a, b, n in ((0, whole, block), (whole, rows, 1)) if b > a]


def kept_units(rows: int, columns: int, sparsity: float, block: int) -> list[int]:
    """How many groups of weights stay in each of the `cuts`; never none."""
    return [max(1, round((1 - sparsity) * ((b - a) // n) * columns)) for a, b, n in cuts(rows, block)]


def masked(size: torch.Tensor, sparsity: float, block: int) -> torch.Tensor:
    """Which weights of [O, I] stay: the groups of `block` rows with the largest sums of `size`."""
    rows, columns = size.shape
    found = torch.empty(rows, columns, dtype=torch.bool)
    for (a, b, n), many in zip(cuts(rows, block), kept_units(rows, columns, sparsity, block), strict=True):
        score = size[a:b].reshape(-1, n, columns).sum(1).flatten()
        stays = torch.zeros(len(score), dtype=torch.bool)
        stays[score.argsort(descending=True, stable=True)[:many]] = True
        found[a:b] = stays.reshape(-1, 1, columns).expand(-1, n, -1).reshape(-1, columns)
    return found


class Pruner:
    """The masks of a model in training. Call `step()` after each step of the optimiser, and `finish()` at the end.

    What is masked is 0 in the model and stays as it was in `held`, so that it can come back when masks are computed
    anew, and only then.
    """

    def __init__(
        self, module: torch.nn.Module, sparsity: float, block: int, start: int, steps: int, every: int
    ):
        if not 0 <= sparsity < 1 or block not in (1, 2, 4) or start < 0 or steps < 0 or every < 1:
            asked = f"{sparsity}, blocks of {block}, start {start}, steps {steps}, every {every}"
            raise BadInput(
                "sparsity", asked, "from 0 to below 1, blocks of 1, 2 or 4, and a schedule forward"
            )
        self.layers = prunable(module)
        if not self.layers:
            raise BadInput(
                "module", type(module).__name__, "1x1 convolutions or linears between first and last layer"
            )
        self.final, self.block, self.start, self.steps, self.every = sparsity, block, start, steps, every
        self.at = 0
        self.held = {path: matrix(owner).clone() for path, owner in self.layers.items()}
        self.masks = {path: torch.ones_like(w, dtype=torch.bool) for path, w in self.held.items()}
        if start == steps == 0:
            self._renew(sparsity)

    def step(self) -> None:
        """After a step of the optimiser: new masks where one is due, else the old ones again."""
        self.at += 1
        since = self.at - self.start
        if 0 <= since < self.steps and since % self.every == 0:
            self._renew(scheduled(self.at, self.final, self.start, self.steps))
        elif self.steps and since == self.steps:
            self._renew(self.final)
        else:
            self._apply()

    def finish(self) -> None:
        """The last masks, whatever the schedule has come to."""
        if self.at < self.start + self.steps:
            self._renew(self.final)
        self._apply()
        self.at = max(self.at, self.start + self.steps)

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are 0 now."""
        return sparsity_of(self.layers)

    def _renew(self, sparsity: float) -> None:
        for path, owner in self.layers.items():
            self._remember(path, owner)
            held = self.held[path]
            self.masks[path] = masked(held.abs(), sparsity, self.block)
            matrix(owner).copy_(held * self.masks[path])

    def _remember(self, path: str, owner: Any) -> None:
        self.held[path] = torch.where(self.masks[path], matrix(owner), self.held[path])

    def _apply(self) -> None:
        for path, owner in self.layers.items():
            matrix(owner).mul_(self.masks[path])


def sparsify(
    module: torch.nn.Module,
    sparsity: float = 0.9,
    *,
    block: int = 1,
    start: int = 0,
    steps: int = 0,
    every: int = 1,
) -> Pruner:
    """Prune a module where it stands, now (`steps` 0) or step by step in your own training loop.

    From step `start` on, new masks every `every` steps, until `steps` steps later `sparsity` of each 1x1 convolution
    and linear is 0. block: output channels that share their non-zeros (1, 2 or 4): faster, and a little worse.

    >>> module = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))
    >>> pruner = sparsify(module, 0.75)
    >>> int((module[1].weight == 0).sum()), int((module[0].weight == 0).sum())
    (192, 0)
    """
    return Pruner(module, sparsity, block, start, steps, every)
