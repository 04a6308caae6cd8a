"""Blocks in turn, one decoder for all, and a teacher that is slower than it.

course = Course(decoder, shelf, blocks, view, plan)
course.start(block, anchors)          # for the blocks of this process
course.run()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.progress import track
from holdall.splats.anchors import Decoder, disagreement
from holdall.splats.camera import Camera
from holdall.splats.likeness import psnr, ssim
from holdall.splats.momentum_gs_block import Block
from holdall.splats.momentum_gs_crew import Crew
from holdall.splats.momentum_gs_shelf import Shelf

View = Callable[[int], tuple[Camera, Any]]  # (number) -> camera and picture [H, W, 3]
_LAST = 0.05  # of the decoder's rate, at the end
_FURTHER = 0.5  # the power of the number of processes that the rate grows by
_KEEP = 0.9  # of a block's running PSNR and SSIM
_JUDGED = 3  # views of a block that tell how good it is


@dataclass(frozen=True)
class Plan:
    """steps: of each block. Shares are of them. most: anchors of a block."""

    steps: int
    interval: int = 50
    momentum: float = 0.9
    lambda_c: float = 1.0
    sigma: float = 1.2  # 0: all blocks weigh alike
    weigh_from: float = 0.2
    decoder_rate: float = 1e-2
    volume: float = 0.01
    above: float = 2e-4
    most: int = 1 << 20
    grow_each: int = 100
    grow_from: float = 0.05
    grow_until: float = 0.5
    seed: int = 0

    @property
    def turns(self) -> list[int]:
        """Steps of each turn; the last is the one with the frozen decoder."""
        count = max(2, math.ceil(self.steps / self.interval))
        edges = [self.steps * i // count for i in range(count + 1)]
        return [b - a for a, b in pairwise(edges)]


def weight_of(psnr_: float, ssim_: float, best_psnr: float, best_ssim: float, sigma: float) -> float:
    """1 for the best block, up to 2 for those that lag."""
    gap = (best_psnr - psnr_) ** 2 + 100 * (best_ssim - ssim_) ** 2
    return 2 - math.exp(-gap / (2 * sigma**2))


class Course:
    """blocks: the views of each; judged: views that tell how good each is, by default some of its own. figures [B, 2]:
    running PSNR and SSIM. heard: called with (block, step, Block) before each step, for those who measure."""

    def __init__(
        self,
        decoder: Decoder,
        shelf: Shelf,
        blocks: Sequence[Sequence[int]],
        view: View,
        plan: Plan,
        *,
        voxel: float,
        background: Sequence[float] = (1, 1, 1),
        judged: Sequence[Sequence[int]] | None = None,
        crew: Crew | None = None,
    ):
        self.crew = crew or Crew()
        self.decoder, self.teacher = decoder.asking(), decoder.copy()
        self.shelf, self.blocks, self.view, self.plan, self.voxel = shelf, blocks, view, plan, voxel
        self.background = background
        self.judged = judged or [_some(views) for views in blocks]
        self.mine = self.crew.share(len(blocks))
        self.figures = torch.full((len(blocks), 2), math.nan, dtype=torch.float64)
        self.weights = [1.0] * len(blocks)
        self.heard: Callable[[int, Block], None] | None = None
        # one step of several processes stands for as many of one: the decoder goes further, and its teacher with it
        self._rate = plan.decoder_rate * self.crew.world**_FURTHER
        self._adam = torch.optim.Adam(list(decoder.params.values()), lr=self._rate, eps=1e-15, fused=True)
        self._all = max(1, sum(plan.turns[:-1]) * len(self.mine))
        self._done = 0  # the decoder's steps

    def start(self, block: int, anchors: Mapping[str, Tensor]) -> None:
        self.shelf.put(block, self._block(anchors, block).state())

    def _block(self, anchors: Mapping[str, Tensor], block: int) -> Block:
        return Block(anchors, self.decoder, voxel=self.voxel, steps=self.plan.steps, background=self.background,
                     seed=self.plan.seed + block)  # fmt: skip

    def run(self) -> None:
        turns = self.plan.turns
        for turn in track(range(len(turns)), "learning"):
            if turn == len(turns) - 1:
                self.crew.same([*self.decoder.params.values(), *self.teacher.params.values()])
                self.decoder.asking(False)
            for block in self.mine:
                self._turn(block, turns[turn], turn)
            self._compare(sum(turns[: turn + 1]))

    def _turn(self, block: int, steps: int, turn: int) -> None:
        """Off the shelf, some steps, and back."""
        self.crew.same([*self.decoder.params.values(), *self.teacher.params.values()])
        state = self.shelf.get(block)
        learner = self._block({k: v[:1] for k, v in state.items() if v.dim() > 1}, block)
        learner.load(state)
        del state
        frozen = not self.decoder.params["first"].requires_grad
        rng = np.random.default_rng((self.plan.seed, block, turn))
        order: list[int] = []
        for _ in range(steps):
            order = order or rng.permutation(np.asarray(self.blocks[block])).tolist()
            self._step(learner, block, order.pop(), frozen)
        self._judge(learner, block)
        self.shelf.put(block, learner.state())

    def _step(self, learner: Block, block: int, number: int, frozen: bool) -> None:
        plan = self.plan
        if self.heard is not None:
            self.heard(block, learner)
        camera, wanted = self.view(number)
        loss, _ = learner.loss_of(camera, wanted, plan.volume)
        if plan.lambda_c and not frozen:
            part = learner.part
            with torch.no_grad():
                taught = self.teacher(part["feature"], part["means"], camera.place)
            loss = loss + plan.lambda_c * disagreement(learner.told, taught)
        learner.step(self.weights[block] * loss)
        if not frozen:
            self._teach()
        due = learner.done % plan.grow_each == 0
        if due and plan.grow_from * plan.steps <= learner.done <= plan.grow_until * plan.steps:
            learner.adjust(above=plan.above, most=plan.most)

    def _teach(self) -> None:
        """The decoder's step, of the mean of all processes' gradients, and the teacher's after it."""
        params = list(self.decoder.params.values())
        self.crew.mean([p.grad for p in params if p.grad is not None])
        for group in self._adam.param_groups:
            group["lr"] = self._rate * _LAST ** min(1.0, self._done / self._all)
        self._adam.step()
        self._adam.zero_grad()
        self._done += 1
        follow(self.teacher, self.decoder, self.plan.momentum**self.crew.world)

    @torch.no_grad()
    def _judge(self, learner: Block, block: int) -> None:
        found = []
        for number in self.judged[block]:
            camera, wanted = self.view(number)
            shown, true = learner.show(camera), torch.as_tensor(wanted)
            found.append([psnr(shown, true), float(ssim(shown, true))])
        new, old = torch.tensor(found, dtype=torch.float64).mean(0), self.figures[block]
        self.figures[block] = torch.where(old.isnan(), new, _KEEP * old + (1 - _KEEP) * new)

    def _compare(self, done: int) -> None:
        """Weights from what all processes found."""
        self.figures = self.crew.rows(self.figures, self.mine)
        if self.plan.sigma and done >= self.plan.weigh_from * self.plan.steps:
            high, like = self.figures.amax(0).tolist()
            self.weights = [weight_of(p, s, high, like, self.plan.sigma) for p, s in self.figures.tolist()]


@torch.no_grad()
def follow(teacher: Decoder, decoder: Decoder, momentum: float) -> None:
    for name, p in teacher.params.items():
        p.mul_(momentum).add_(decoder.params[name], alpha=1 - momentum)


def _some(views: Sequence[int]) -> list[int]:
    return [views[i] for i in np.unique(np.linspace(0, len(views) - 1, _JUDGED).astype(int))]
