"""LightGaussian: a finished scene made small: pruned by what shows, taught again, its harmonics in a shared book."""

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

_FEWEST, _MOST, _EACH = 5, 1500, 10  # steps where none are asked for: least, most, Gaussians for one


@dataclass(frozen=True, kw_only=True)
class LightGaussian(SplatCodec):
    """Makes a trained scene very small: fewer Gaussians that are trained again to look as all of them did.

    Gaussians that add least to the pictures go, the others recover by training on photographs, or on pictures of
    the scene itself where there are none. Harmonics are cut to a lower degree and taught to look as before. All is
    quantised and coded as by `splats.coded`, with which it shares its form; with `vq` the harmonics of what is seen
    less become entries of a book, as in the paper. At last colours learn once more, with all as it is stored.

    It takes minutes where `splats.coded` takes seconds, and is worth them at small budgets, where Gaussians have to
    go. What was learnt is what was looked at: for rooms give cameras, for closer looks a larger `width`.

    Shapes:
        any scene; the order of Gaussians is not kept.
    Cost:
        a step is a picture drawn and its way back: some 0.06 s for 20,000 Gaussians and 240 x 180 pixels on one core.
    Knobs:
        prune: the share of Gaussians that goes where no budget is given (paper: 0.66). each: bytes of a Gaussian that
        stays, which tells how many may stay within a budget; 0: 4.5, and 1 for each degree. beta: how much volume
        counts in significance (paper: 0.1). steps: of recovery, and of distillation; half as many at the end; 0: by
        how many Gaussians there are (paper: 5,000). degree: of harmonics that stay (paper: 2). jitter: how far
        pseudo views are away, in parts of the scene's extent (paper: 0.05 units). vq: the share of Gaussians whose
        harmonics come from a book (paper: 0.6; 0 here, since numbers coded in context are better at equal bytes).
        codes: its entries, 0: one for sixteen Gaussians (paper: 8,192). apart: 1: the colour that is the same from all
        sides is no part of the book; 0: it is (the paper). dial: how rough numbers are where no budget is given.
        views, width: pictures of a scene that it learns from, and pixels across. seed: of all draws.
    Differs from the paper:
        pictures of the scene stand for photographs where there are none, before any colour. The budget says how many
        Gaussians stay. Without `vq` there is no book; its new entries are the vectors whose importance times miss is
        largest, not the most important ones. Places, forms and colours are not float16: they follow a dial and are
        coded in context, places as a tree. Entries are sorted by likeness and coded by what neighbours have. In the
        last steps only colours learn.
    Example:
        >>> from holdall.splats.lightgaussian import LightGaussian
        >>> from holdall.splats.made import solids
        >>> scene = solids(400)
        >>> packed = LightGaussian(steps=4, views=2, width=32).encode(scene, "6%")
        >>> packed.nbytes <= 0.06 * scene.nbytes
        True

    Paper: Fan, Wang, Wen, Zhu, Xu and Wang, NeurIPS 2024.
    Test: tests/splats/test_lightgaussian.py
    """

    name: ClassVar[str] = "lightgaussian"
    paper: ClassVar[Paper] = Paper(
        19,
        "LightGaussian: Unbounded 3D Gaussian Compression with 15x Reduction and 200+ FPS",
        "Fan, Wang, Wen, Zhu, Xu and Wang, NeurIPS 2024",
        "https://arxiv.org/abs/2311.17245",
    )
    brief: ClassVar[dict[str, Any]] = {"steps": 3, "views": 3, "width": 40}

    prune: float = knob(0.66, "share of Gaussians that goes where no budget is given", other=0.4)
    each: float = knob(0.0, "bytes of one that stays, 0: by degree", other=30.0, at={"budget": "10%"})
    beta: float = knob(0.1, "how much volume counts", other=1.0)
    steps: int = knob(0, "of recovery and of distillation; 0: by Gaussians", paper=5000, other=2)
    degree: int = knob(2, "of harmonics that stay", other=1)
    jitter: float = knob(0.05, "how far pseudo views are away", other=0.0, at={"degree": 1})
    vq: float = knob(0.0, "share of Gaussians whose harmonics come from a book", paper=0.6, other=0.6)
    codes: int = knob(0, "entries of the book; 0: by Gaussians", paper=8192, other=8, at={"vq": 0.6})
    apart: int = knob(1, "whether the book leaves out the plain colour", paper=0, other=0, at={"vq": 0.6})
    dial: float = knob(0.004, "how rough numbers are where no budget is given", other=0.02)
    views: int = knob(48, "pictures of a scene that it learns from", other=1)
    width: int = knob(480, "of these pictures", unit="pixels", other=32)
    seed: int = knob(0, "of all draws", other=1)

    def __post_init__(self) -> None:
        within(
            self,
            ("prune", 0, 0.9999), ("each", 0, 1e6), ("beta", 0, 100), ("steps", 0, 1 << 30), ("degree", 0, 3),
            ("jitter", 0, 10), ("vq", 0, 1), ("codes", 0, 8192), ("apart", 0, 1), ("dial", 1e-7, 1e3),
            ("views", 1, 4096), ("width", 8, 8192),
        )  # fmt: skip

    def encode(
        self, x: Scene, budget: Spend = None, *, photos: Photos | None = None, to: str | None = None
    ) -> Packed:
        """photos: photographs to recover by (`holdall.splats.posed.read_photos`), those held out are not looked at."""
        need("torch", "splats")
        from holdall.splats.lightgaussian_work import light

        return light(self, given(x), self.allowed(x, budget), photos).kept(to)

    def steps_for(self, count: int) -> int:
        """Of recovery and of distillation, for a scene of so many Gaussians."""
        return self.steps or min(_MOST, max(_FEWEST, count // _EACH))

    def decode(self, packed: Packed) -> Scene:
        from holdall.splats import lightgaussian_file

        return lightgaussian_file.read(stream_of(packed, "a light scene"))
