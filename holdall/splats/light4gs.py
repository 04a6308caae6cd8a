"""Light4GS: a moving scene that is coded with what is known of its planes (Liu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import need
from holdall.packed import Packed
from holdall.splats.base import stream_of, within
from holdall.splats.base_moving import MovingCodec, given_moving
from holdall.splats.hexplane import HexScene


@dataclass(frozen=True, kw_only=True)
class Light4GS(MovingCodec):
    """Makes a moving scene many times smaller: who never shows goes, the rest is coded by what it stands in.

    Gaussians are ranked by what they show at all sampled times, where they are then, and the last of them go. What is
    left learns on, from the scene's pictures (`HexScene.shots`) or its own: planes and harmonics with noise as wide as
    steps that are learnt too, and with a price of the bits that small nets expect. Planes are coded coarse before fine,
    each number by the coarser plane, neighbours, rows of earlier times, planes that share an axis, and a hyperprior;
    harmonics by neighbours along a curve, colours that came before, opacity and size. All that coder and decoder must
    agree on is whole numbers. Poor where there is no time to learn, and of scenes so small that nets outweigh them.

    Shapes:
        a HexScene of N Gaussians, planes [h, rows, columns], layers.
    Cost:
        a picture of each time and view for the ranking; a pass forward and back of a picture and a third of the planes
        for each step; `rounds` passes of all planes. Unpacking takes about a tenth of a second for 10^5 numbers.
    Knobs:
        prune, the share of Gaussians that go (paper: 0.64). lambda_planes, lambda_sh: what a kilobyte costs, in the
        pictures' loss. steps: of learning (paper: some thousands). rounds, rate: of nets, at the end. step: of planes
        at first. hidden: numbers between the layers of a net. hyper, coarse, intra, inter: whether these contexts are
        looked at. bits: of places along the middle of the scene. moments: times that are looked at, evenly. views,
        width: of its own pictures, where it came without any and without cameras. seed: of all draws.
    Differs from the paper:
        its exact score, shapes of nets and prices are not known to us: the score is the mean over time plus the most at
        any time, nets are shared by all features of planes of a kind and see numbers, not maps. A Gaussian with a 64th
        part of a wider one is the curve. The order within a plane is two halves of the features, each in two colours of
        a chessboard; planes of time go row by row. Places are a tree's, forms 8 bits, coded as in splats.compact3dgs.
        Axes of planes are chosen when a scene is trained (`hexplane_learn.fit_moving`), not when it is packed.
    Example:
        >>> from holdall.splats.light4gs import Light4GS
        >>> from holdall.splats.quality_moving import real
        >>> packed = Light4GS(steps=2, rounds=2, views=2, width=16, moments=2).encode(real())
        >>> packed.nbytes < real().nbytes / 3
        True

    Paper: Liu, Yang, Huang, Huang, Yuan, Li and Xu, 2025.
    Test: tests/splats/test_light4gs.py
    """

    name: ClassVar[str] = "light4gs"
    usual: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        92,
        "Light4GS: Lightweight Compact 4D Gaussian Splatting Generation via Context Model",
        "Liu, Yang, Huang, Huang, Yuan, Li and Xu, 2025",
        "https://arxiv.org/abs/2503.13948",
    )
    brief: ClassVar[dict[str, Any]] = {
        "steps": 2, "rounds": 2, "views": 2, "width": 16, "moments": 3, "hidden": 6,
    }  # fmt: skip

    prune: float = knob(0.4, "share of the Gaussians that go", paper=0.64, other=0.7)
    lambda_planes: float = knob(0.0001, "what a kilobyte of planes costs", other=0.1)
    lambda_sh: float = knob(0.0001, "what a kilobyte of harmonics costs", other=0.1)
    steps: int = knob(0, "of learning with that price; 0: by Gaussians, up to 600", other=1)
    rounds: int = knob(0, "in which nets learn what is stored; 0: by planes, up to 150", other=1)
    rate: float = knob(0.02, "of nets in these", other=0.1)
    step: float = knob(0.03, "of planes at first", other=0.1)
    hidden: int = knob(16, "numbers between the layers of a net", other=4)
    hyper: bool = knob(True, "whether a hyperprior is sent", other=False)
    coarse: bool = knob(True, "whether the coarser plane is looked at", other=False)
    intra: bool = knob(True, "whether neighbours within a scale are looked at", other=False)
    inter: bool = knob(True, "whether earlier times are looked at", other=False)
    bits: int = knob(13, "of places along the scene", unit="bits", other=9)
    moments: int = knob(12, "times that are looked at", other=2)
    views: int = knob(8, "of a scene without pictures and cameras", other=1)
    width: int = knob(96, "of these pictures", unit="pixels", other=24)
    seed: int = knob(0, "of all draws", other=1)

    def __post_init__(self) -> None:
        within(
            self,
            ("steps", 0, 1 << 30), ("rounds", 0, 1 << 20), ("hidden", 1, 255), ("bits", 2, 20),
            ("moments", 1, 1 << 12), ("views", 1, 4096), ("width", 8, 8192),
            ("lambda_planes", 0, 1e6), ("lambda_sh", 0, 1e6), ("rate", 0, 1e6), ("step", 1e-3, 8),
        )  # fmt: skip
        if not 0 <= self.prune < 1:
            raise BadInput("prune", self.prune, "a share from 0 to below 1")

    def encode(self, x: HexScene, budget: Spend = None, *, to: str | None = None) -> Packed:
        need("torch", "splats")
        from holdall.splats.light4gs_work import from_moving

        return from_moving(self, given_moving(x), self.allowed(x, budget)).kept(to)

    def decode(self, packed: Packed) -> HexScene:
        need("torch", "splats")
        from holdall.splats import light4gs_file

        return light4gs_file.scene_of(light4gs_file.read(stream_of(packed, "a moving scene")))
