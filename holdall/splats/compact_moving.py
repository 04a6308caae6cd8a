"""Compact-3DGS of scenes that move: spacetime Gaussians with masks, one field of colours, and books that learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import need
from holdall.packed import Packed
from holdall.splats.base import stream_of, within
from holdall.splats.base_moving import MovingCodec
from holdall.splats.moving import Moving

if TYPE_CHECKING:
    from holdall.splats.posed_photos import Photos
    from holdall.splats.spacetime import SpacetimeScene


@dataclass(frozen=True, kw_only=True)
class CompactMoving(MovingCodec):
    """Trains a small scene that moves, from photographs with times (`holdall fit-scene`) or a scene.

    Each Gaussian shows around a time of its own as a bell, and goes a way of third degree while it turns evenly. A
    mask learns whether it is worth its place. A hash grid and a tiny network tell six of its nine numbers of colour
    from where it is; the other three change with time. In the last part of training sizes, rotations, turns and these
    three are sums of entries of small books, which learn with the rest. What is stored is places as a tree along
    Morton's curve, ways in even steps, the rest in 8 bits and codes, all coded by adaptive contexts.

    Cameras that move slowly around what moves are what it is good at; what happens twice or jumps needs Gaussians for
    each time. Small scenes pay for books, grid and network: of fewer than 1,000 Gaussians these are most of the file.

    Shapes:
        any `Moving` scene of N Gaussians, `at(t)` a Scene; comes back as a `SpacetimeScene`, in another order. A budget
        leaves out those that are seen least.
    Cost:
        a step is a picture drawn and its way back: 10 ms for 2,400 Gaussians and 48 x 48 pixels on one core.
    Knobs:
        steps: of training; 0: 3,000 from photographs, half a scene's Gaussians otherwise (paper: 25,000).
        lambda_mask: how much a Gaussian costs (paper: 5e-4). mask_rate: of learning masks; runs of under 6,000 steps
        learn as much faster, up to ten times. field_rate: of the field. levels, table: of the hash grid; table is the
        power of two of a level's entries, 0: by the number of Gaussians (paper: 16; 14). neurons: of a layer (paper:
        64). stages: books of sizes, and of rotations (paper: 4). later: books of turns, and of colours in time (paper:
        3). codes: entries of each (paper: 256). quantise: the share of steps before the books (paper: 0.96).
        threshold: up to which the table's numbers are taken for 0. bits: of places along the middle of the scene
        (paper: float16). motion: steps of ways, in the grid's cells; 0: float16, as the paper. views, moments, width:
        pictures of a scene that it is learnt from, times of each, and pixels across. seed: of all draws.
    Differs from the paper:
        the decoder that adds direction and time to colours works on each Gaussian before they are blended, not on
        pixels afterwards, so that the scene of each moment is one that any renderer draws; it has 6 hidden neurons, as
        theirs. A moving scene can be packed, too: bells, ways and turns are fitted to where its Gaussians are, and its
        own pictures are the teacher. Books learn from pictures as well as from what they miss. Ways are in even steps,
        places a tree's, layers and books float16; all goes through mixed adaptive contexts, not Huffman's.
    Example:
        >>> from holdall.splats import CompactMoving
        >>> from holdall.splats.made_moving import moving_solids
        >>> packed = CompactMoving(steps=5, views=2, moments=3, width=32, codes=16).encode(moving_solids(300))
        >>> CompactMoving().decode(packed).at(0.5).degree
        2

    Paper: Lee, Rho, Sun, Ko and Park, arXiv 2024.
    Test: tests/splats/test_compact_moving.py
    """

    name: ClassVar[str] = "compact_moving"
    paper: ClassVar[Paper] = Paper(
        1,
        "Compact 3D Gaussian Splatting for Static and Dynamic Radiance Fields",
        "Lee, Rho, Sun, Ko and Park, arXiv 2024",
        "https://arxiv.org/abs/2408.03822",
    )
    brief: ClassVar[dict[str, Any]] = {
        "steps": 4, "views": 2, "moments": 2, "width": 32, "levels": 4, "neurons": 8, "stages": 2, "later": 2,
        "codes": 8,
    }  # fmt: skip

    steps: int = knob(0, "of training; 0: by what there is to learn", paper=25_000, other=3)
    lambda_mask: float = knob(0.01, "how much a Gaussian costs", paper=5e-4, other=0.0, at={"mask_rate": 1.0})
    mask_rate: float = knob(0.01, "of learning masks", other=1.0, at={"lambda_mask": 1.0})
    field_rate: float = knob(0.01, "of learning the field of colours", other=0.003)
    levels: int = knob(8, "of the hash grid", paper=16, other=2)
    table: int = knob(0, "entries of a level, as the power of two; 0: by Gaussians", paper=14, other=4)
    neurons: int = knob(32, "of a layer of the field", paper=64, other=4)
    stages: int = knob(3, "books of sizes, and of rotations", paper=4, other=1)
    later: int = knob(2, "books of turns, and of colours in time", paper=3, other=1)
    codes: int = knob(64, "entries of a book", paper=256, other=4)
    quantise: float = knob(0.8, "share of the steps before the books", paper=0.96, other=0.3)
    threshold: float = knob(0.1, "up to which the table's numbers are 0", other=0.001)
    bits: int = knob(12, "of places along the scene", unit="bits", other=8)
    motion: float = knob(16.0, "steps of ways; 0: float16", unit="cells", paper=0, other=0.0)
    views: int = knob(12, "pictures of a scene that it is learnt from, at each time", other=3)
    moments: int = knob(12, "times of these pictures", other=3)
    width: int = knob(96, "of these pictures", unit="pixels", other=40)
    seed: int = knob(0, "of all draws", other=1)

    def __post_init__(self) -> None:
        within(
            self,
            ("steps", 0, 1 << 30), ("levels", 1, 32), ("table", 0, 20), ("neurons", 1, 1024), ("stages", 1, 16),
            ("later", 1, 16), ("codes", 1, 256), ("bits", 2, 20), ("views", 1, 4096), ("moments", 1, 4096),
            ("width", 8, 8192), ("lambda_mask", 0, 1e6), ("mask_rate", 0, 1e6), ("field_rate", 0, 1e6),
            ("quantise", 0, 1e6), ("threshold", 0, 1e6), ("motion", 0, 1e6),
        )  # fmt: skip

    @classmethod
    def sniff(cls, url: str, head: bytes) -> bool:
        return head[:3] == b"ply" and b"trbf_center" in head

    @classmethod
    def read_input(cls, url: str) -> Any:
        from holdall.splats.formats import spacetime

        return spacetime.read(url) if url.lower().endswith(".ply") else super().read_input(url)

    @classmethod
    def with_text(cls, x: Any, text: str) -> Any:
        from holdall.splats.posed import cameras_of
        from holdall.splats.spacetime import SpacetimeScene

        if isinstance(x, SpacetimeScene):
            return replace(x, cameras=tuple(cameras_of(text)))
        return super().with_text(x, text)

    @classmethod
    def write_output(cls, x: Any, url: str) -> None:
        from holdall.splats.formats import spacetime

        spacetime.write(x, url)

    def encode(self, x: Any, budget: Spend = None, *, to: str | None = None) -> Packed:
        need("torch", "splats")
        from holdall.splats.compact_moving_work import from_moving

        if not issubclass(type(x), Moving):
            raise BadInput("scene", type(x).__name__, "a Moving scene; splats.compact3dgs is for still ones")
        for t in (0.0, 0.5, 1.0):
            x.at(t).checked("moving scene")
        return from_moving(self, x, self.allowed(x, budget)).kept(to)

    def fit(
        self,
        photos: Photos,
        budget: Spend = None,
        *,
        memory: int | None = None,
        start: int = 4000,
        most: int = 100_000,
    ) -> tuple[SpacetimeScene, Packed]:
        """A scene from photographs with times: (as it is unpacked, packed). As `Compact3DGS.fit`."""
        need("torch", "splats")
        from holdall.splats.compact_moving_work import from_photographs

        packed = from_photographs(self, photos, budget, memory, start, most)
        return self.decode(packed), packed

    def decode(self, packed: Packed) -> SpacetimeScene:
        need("torch", "splats")
        from holdall.splats import compact_moving_file

        return compact_moving_file.read(stream_of(packed, "a compact scene"))
