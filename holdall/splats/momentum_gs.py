"""Momentum-GS: a scene trained block by block, with one small decoder for all and a teacher that follows it slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import need
from holdall.packed import Packed
from holdall.splats.base import SplatCodec, given, stream_of, within
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from holdall.splats.momentum_gs_train import Plan
    from holdall.splats.posed_photos import Photos


@dataclass(frozen=True, kw_only=True)
class MomentumGS(SplatCodec):
    """Trains a scene that is too large for memory, a block at a time, from photographs (`holdall fit-scene`).

    Space is cut into blocks, each with anchors, cameras and Adam's moments of its own; one trains, the others wait on
    disk. An anchor has a feature and some offsets; one small network, the same for all blocks, tells from the feature
    and from where it is seen how the Gaussians at its offsets look. A teacher follows that network slowly, and blocks
    are held to what it says, so that they agree where they meet. Blocks that lag weigh more. At the end the network
    stands still while anchors are refined; the file has all anchors and one network.

    What is decoded is drawn as the network tells it for each camera (`Scene.seen_from`). Files for other viewers have
    harmonics and forms fitted to that, which are a little worse. Small scenes have no need of blocks:
    `splats.compact3dgs` is for those.

    Shapes:
        any scene; the order of Gaussians is not kept. A budget leaves out the anchors that are seen least.
    Cost:
        a step is what is in one picture, decoded twice, drawn, and its way back. Memory: one block, its moments and
        the anchors around it; changing blocks writes one and reads one. Under `torch.distributed` (gloo) each process
        takes its share of the blocks, and gradients of the network are averaged.
    Knobs:
        blocks: 0: as many as the memory asks for, or 4 (paper: 8). interval: steps of a block before the next (paper:
        not known). momentum: of the teacher (paper: 0.9). lambda_c: how much disagreement with it costs (paper: 50, as
        is recalled). sigma: of the weights of blocks; 0: all alike (paper: not known). lambda_volume: what a Gaussian
        of a cell's size costs (paper: 0.01). weigh_from: the share of steps without weights (paper: 1,000 steps).
        overlap: the part of a picture that makes a camera a block's. context: anchors of other blocks that a block
        trains along, to stand for the rest of its pictures, in parts of its own. feature, offsets, neurons: of an
        anchor, of the network (paper: 32, 10, 32). steps: of all blocks together; 0: 3,000 from photographs, a quarter
        of a scene's Gaussians otherwise. bits: of features and offsets in the file; place_bits: of anchors' places.
        degree: of harmonics that are unpacked. views, width: pictures of a scene that it is learnt from, and pixels
        across. seed: of all draws.
    Differs from the paper:
        a scene can be packed, too: its own pictures are the teacher, none are added. Features and network first learn
        what points or Gaussians look like, without pictures. Blocks are k-d cells; a camera is a block's by how much of
        its picture the block has, or since it stands in it, with no trained coarse scene. Differences of sizes are of
        the stretch in 0 to 1, volumes are in cells, distances in the scene's extent. New offsets are drawn by lot, not
        0. Blocks are judged on their own views at the end of each turn. The teacher is worked out by each process from
        equal networks, and made the same whenever blocks change. Exposure is not modelled.
    Example:
        >>> from holdall.splats.momentum_gs import MomentumGS
        >>> from holdall.splats.made import solids
        >>> packed = MomentumGS(steps=4, views=2, width=32).encode(solids(400))
        >>> packed.nbytes < solids(400).nbytes / 2
        True

    Paper: Fan, Li, Han, Dai and Tang, ICCV 2025.
    Test: tests/splats/test_momentum_gs.py
    """

    name: ClassVar[str] = "momentum_gs"
    paper: ClassVar[Paper] = Paper(
        15,
        "Momentum-GS: Momentum Gaussian Self-Distillation for High-Quality Large Scene Reconstruction",
        "Fan, Li, Han, Dai and Tang, ICCV 2025",
        "https://arxiv.org/abs/2412.04887",
    )
    brief: ClassVar[dict[str, Any]] = {
        "steps": 10, "interval": 2, "views": 3, "width": 32, "feature": 16, "neurons": 16, "blocks": 2,
    }  # fmt: skip

    blocks: int = knob(0, "of the scene; 0: as many as memory asks for, else 4", paper=8, other=3)
    interval: int = knob(50, "steps of a block before the next", other=3)
    momentum: float = knob(0.9, "of the teacher", other=0.0)
    lambda_c: float = knob(1.0, "how much disagreement with the teacher costs", paper=50.0, other=0.0)
    sigma: float = knob(1.2, "of the weights of blocks; 0: all alike", unit="dB", other=0.0)
    weigh_from: float = knob(0.2, "share of the steps before blocks are weighed", other=1.0)
    lambda_volume: float = knob(0.01, "what a Gaussian of a cell's size costs", other=1.0)
    overlap: float = knob(0.25, "part of a picture that makes a camera a block's", other=0.9)
    context: float = knob(0.5, "anchors of others that a block trains along, in parts of its own", other=0.0)
    feature: int = knob(32, "numbers of an anchor", other=8)
    offsets: int = knob(10, "Gaussians of an anchor", other=5)
    neurons: int = knob(32, "of each head of the decoder", other=8)
    steps: int = knob(0, "of all blocks; 0: by what there is to learn", other=4)
    bits: int = knob(5, "of features and offsets in the file", unit="bits", other=3)
    place_bits: int = knob(13, "of anchors' places along the scene", unit="bits", other=8)
    degree: int = knob(3, "of harmonics that are unpacked", other=1)
    views: int = knob(16, "pictures of a scene that it is learnt from", other=5)
    width: int = knob(160, "of these pictures", unit="pixels", other=24)
    seed: int = knob(0, "of all draws", other=1)

    def __post_init__(self) -> None:
        within(
            self,
            ("blocks", 0, 256), ("interval", 1, 1 << 30), ("feature", 1, 255), ("offsets", 1, 64), ("degree", 0, 3),
            ("neurons", 1, 1024), ("steps", 0, 1 << 30), ("bits", 1, 8), ("place_bits", 2, 20), ("momentum", 0, 1),
            ("views", 1, 4096), ("width", 8, 8192), ("overlap", 0, 1), ("context", 0, 16), ("weigh_from", 0, 1),
            ("lambda_c", 0, 1e6), ("sigma", 0, 1e6), ("lambda_volume", 0, 1e6),
        )  # fmt: skip

    def plan(self, steps: int, most: int) -> Plan:
        """Of each block. most: anchors of a block; 1: none are added."""
        from holdall.splats.momentum_gs_train import Plan

        return Plan(
            steps, self.interval, self.momentum, self.lambda_c, self.sigma, self.weigh_from,
            volume=self.lambda_volume, most=most, grow_each=max(20, min(100, steps // 16)),
            grow_until=0.6 if most > 1 else 0.0, seed=self.seed,
        )  # fmt: skip

    def encode(self, x: Scene, budget: Spend = None, *, to: str | None = None) -> Packed:
        need("torch", "splats")
        from holdall.splats.momentum_gs_work import from_scene

        return from_scene(self, given(x), self.allowed(x, budget)).kept(to)

    def fit(
        self,
        photos: Photos,
        budget: Spend = None,
        *,
        memory: int | None = None,
        start: int = 4000,
        most: int = 100_000,
    ) -> tuple[Scene, Packed]:
        """A scene from photographs: (as it is decoded, packed). In each process of a torch.distributed group, with the
        same arguments, it gives the same.

        budget: of the file. memory: bytes that this process may hold, photographs that are kept among them: it decides
        how many blocks there are, and the scene has no harmonics (as a camera sees it, it is the same). start:
        Gaussians to begin with; most: at all.
        """
        need("torch", "splats")
        from holdall.splats.momentum_gs_work import from_photographs

        packed = from_photographs(self, photos, budget, memory, start, most)
        return (self if memory is None else self.but(degree=0)).decode(packed), packed

    def decode(self, packed: Packed) -> Scene:
        need("torch", "splats")
        from holdall.splats import momentum_gs_file

        return momentum_gs_file.read(stream_of(packed, "a scene of anchors")).scene(self.degree)
