"""Compact-3DGS: fewer Gaussians by a learnt mask, their colours from one small field, their forms from small books."""

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
    from holdall.splats.posed_photos import Photos


@dataclass(frozen=True, kw_only=True)
class Compact3DGS(SplatCodec):
    """Trains a scene that is small, from photographs (`holdall fit-scene`) or from a scene's own pictures.

    Each Gaussian has a mask that learns whether it is worth its place; what is shut goes. No Gaussian has a colour of
    its own: a hash grid and a tiny network tell it, from where it is and from where it is seen. In the last part of
    training scales and rotations are sums of entries of six small books, one book after the other. What is stored is
    places on a grid as a tree, opacities and the grid's numbers in 8 bits, and codes, all coded by adaptive contexts.

    From photographs it is smaller and no worse than plain training. Of a scene that is trained already,
    `splats.coded` keeps more of what that scene looks like, in less time. What is unpacked has harmonics fitted to
    the field, so that any viewer draws it; where colours change sharply with direction these are a little worse.

    Shapes:
        any scene; the order of Gaussians is not kept. A budget leaves out those that are seen least.
    Cost:
        a step is a picture drawn and its way back, and a pass of all Gaussians through the field: some 40 ms for
        8,000 Gaussians and 100 x 100 pixels on one core.
    Knobs:
        steps: of training; 0: 3,000 from photographs, a quarter of a scene's Gaussians otherwise (paper: 30,000).
        lambda_mask: how much a Gaussian costs (paper: 5e-4 for 30,000 steps of real scenes, 4e-3 of others).
        mask_rate: of learning masks; runs of under 6,000 steps learn as much faster, up to ten times. field_rate: of
        the field. levels, table: of the hash grid; table is the power of two of a level's entries, 0: by the number
        of Gaussians (paper: 16; 19 or 16). neurons: of a layer (paper: 64). stages, codes: of the books (paper: 6,
        64). quantise: the share of steps before the books (paper: 29/30). threshold: up to which the table's numbers
        are taken for 0. bits: of places along the middle of the scene (paper: float16). degree: of harmonics that are
        unpacked. views, width: pictures of a scene that it is learnt from, and pixels across. seed: of all draws.
    Differs from the paper:
        a scene can be packed, too: its own pictures are the teacher, the field first learns its harmonics, and none
        are added. Rotations are named so that they turn least before books are made (a Gaussian looks the same with
        its axes renamed); books are float16. The table is trained as it will be stored. Places are a grid's, coded as
        a tree without loss, where the paper has float16; all codes go through mixed adaptive contexts, not Huffman's.
        Opacities are never reset. No photograph's points: places by lot, less those that photographs show to be
        empty. Runs are shorter, so masks cost and learn more. Only still
        scenes: splats.compact_moving is for others.
    Example:
        >>> from holdall.splats.compact3dgs import Compact3DGS
        >>> from holdall.splats.made import solids
        >>> packed = Compact3DGS(steps=5, views=2, width=32).encode(solids(400))
        >>> packed.nbytes < solids(400).nbytes / 2
        True

    Paper: Lee, Rho, Sun, Ko and Park, CVPR 2024.
    Test: tests/splats/test_compact3dgs.py
    """

    name: ClassVar[str] = "compact3dgs"
    paper: ClassVar[Paper] = Paper(
        1,
        "Compact 3D Gaussian Representation for Radiance Field",
        "Lee, Rho, Sun, Ko and Park, CVPR 2024",
        "https://arxiv.org/abs/2311.13681",
    )
    brief: ClassVar[dict[str, Any]] = {
        "steps": 4, "views": 2, "width": 32, "levels": 4, "neurons": 8, "codes": 16,
    }  # fmt: skip

    steps: int = knob(0, "of training; 0: by what there is to learn", paper=30_000, other=3)
    lambda_mask: float = knob(0.01, "how much a Gaussian costs", paper=5e-4, other=0.0, at={"mask_rate": 1.0})
    mask_rate: float = knob(0.01, "of learning masks", other=1.0, at={"lambda_mask": 1.0})
    field_rate: float = knob(0.01, "of learning the field of colours", other=0.003)
    levels: int = knob(16, "of the hash grid", other=2)
    table: int = knob(0, "entries of a level, as the power of two; 0: by Gaussians", paper=19, other=6)
    neurons: int = knob(32, "of a layer of the field", paper=64, other=4)
    stages: int = knob(6, "books of scales, and of rotations", other=3)
    codes: int = knob(64, "entries of a book", other=8)
    quantise: float = knob(0.8, "share of the steps before forms are quantised", paper=29 / 30, other=0.3)
    threshold: float = knob(0.1, "up to which the table's numbers are 0", other=0.01)
    bits: int = knob(13, "of places along the scene", unit="bits", other=9)
    degree: int = knob(3, "of harmonics that are unpacked", other=1)
    views: int = knob(16, "pictures of a scene that it is learnt from", other=3)
    width: int = knob(160, "of these pictures", unit="pixels", other=40)
    seed: int = knob(0, "of all draws", other=1)

    def __post_init__(self) -> None:
        within(
            self,
            ("steps", 0, 1 << 30), ("levels", 1, 32), ("table", 0, 20), ("neurons", 1, 1024), ("stages", 1, 16),
            ("codes", 1, 128), ("bits", 2, 20), ("degree", 0, 3), ("views", 1, 4096), ("width", 8, 8192),
            ("lambda_mask", 0, 1e6), ("mask_rate", 0, 1e6), ("field_rate", 0, 1e6), ("quantise", 0, 1e6),
            ("threshold", 0, 1e6),
        )  # fmt: skip

    def encode(self, x: Scene, budget: Spend = None, *, to: str | None = None) -> Packed:
        need("torch", "splats")
        from holdall.splats.compact3dgs_work import from_scene

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
        """A scene from photographs: (as it is unpacked, packed).

        budget: of the file. memory: bytes that this process may hold, photographs that are kept among them. start:
        Gaussians to begin with; most: at all.
        """
        need("torch", "splats")
        from holdall.splats.compact3dgs_work import from_photographs

        packed = from_photographs(self, photos, budget, memory, start, most)
        return self.decode(packed), packed

    def decode(self, packed: Packed) -> Scene:
        need("torch", "splats")
        from holdall.splats import compact3dgs_file

        return compact3dgs_file.read(stream_of(packed, "a compact scene")).scene(self.degree)
