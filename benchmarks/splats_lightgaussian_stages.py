"""What each stage of splats.lightgaussian gives, on a scene of lego that is trained here: see splats_lightgaussian."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keeper
from splats_lego import Lego

from holdall.packed import Packed
from holdall.splats import LightGaussian
from holdall.splats.coded_form import prepared
from holdall.splats.coded_weights import weighed
from holdall.splats.formats import ply
from holdall.splats.lightgaussian_books import split
from holdall.splats.lightgaussian_file import write
from holdall.splats.lightgaussian_learn import distilled, photographs, recovered
from holdall.splats.lightgaussian_work import Coding, scored
from holdall.splats.quality import likeness, pictures
from holdall.splats.raster import significance
from holdall.splats.scene import Scene
from holdall.splats.significance import volume_term

RESULTS = Path(__file__).parent / "results" / "splats_lightgaussian.json"


keep = keeper(RESULTS, 36)


def raw_bytes(scene: Scene) -> int:
    return sum(len(piece) for piece in ply.pieces(scene))


def timed(codec: Any, *given: Any, **more: Any) -> tuple[Packed, Scene, float]:
    """(packed, what decodes from its bytes, seconds of CPU to pack)."""
    start = time.process_time()
    made = codec.encode(*given, **more)
    took = time.process_time() - start
    return made, codec.decode(Packed.from_bytes(made.to_bytes())), took


class Work:
    """Lego and its scene, trained once; what recovers from 66 % of pruning, once."""

    def __init__(self, asked: argparse.Namespace):
        self.asked, self.recipe = asked, LightGaussian(steps=asked.steps)
        self._lego: Lego | None = None
        self._pruned: Scene | None = None

    @property
    def lego(self) -> Lego:
        if self._lego is None:
            self._lego = Lego(self.asked.side, self.asked.training, self.asked.most)
        return self._lego

    @property
    def scene(self) -> Scene:
        return self.lego.plain()[0]

    @property
    def cameras(self) -> list[Any]:
        return [self.lego.cameras[i] for i in self.lego.train]

    @property
    def steps(self) -> int:
        return self.recipe.steps_for(len(self.scene))

    def recovered(self, some: Scene) -> Scene:
        return recovered(some, photographs(self.lego), len(self.cameras), self.steps, 0)  # type: ignore[arg-type]

    def kept(self, score: Any) -> Scene:
        count = round(0.34 * len(self.scene))
        return self.scene.take(np.sort(np.argsort(-score, kind="stable")[:count]))

    def pruned(self) -> Scene:
        if self._pruned is None:
            self._pruned = self.recovered(self.kept(scored(self.recipe, self.scene, self.cameras)))
        return self._pruned


def stages(work: Work) -> None:
    """Without a budget: the paper's own shares."""
    look, seen = photographs(work.lego), work.lego.seen  # type: ignore[arg-type]
    made, back, _ = timed(work.recipe, work.scene, None, photos=work.lego)
    some = work.kept(scored(work.recipe, work.scene, work.cameras))
    whole = work.pruned()
    small = distilled(whole, work.recipe.degree, work.cameras, work.steps, 0)
    for name, scene in (("given", work.scene), ("pruned", some), ("recovered", whole), ("distilled", small)):
        keep("stages", name, {"bytes": raw_bytes(scene), "gaussians": len(scene), **seen(scene)})
    coding = Coding.of(work.recipe, small, work.cameras)
    before = coding.filled(None, made)
    after = coding.tuned(look, len(work.cameras), work.steps // 2).refilled(None, made)
    for name, packed in (("in a file", before), ("last steps", after)):
        keep(
            "stages",
            name,
            {"bytes": packed.nbytes, **seen(work.recipe.decode(packed)), **packed.notes["parts"]},
        )
    keep("stages", "as encode makes it", {"bytes": made.nbytes, **seen(back)})


def pruning(work: Work) -> None:
    scene = work.scene
    seen = significance(scene, work.cameras)
    scores = {
        "significance": scored(work.recipe, scene, work.cameras), "without its volume": seen,
        "need, as coded has it": weighed(scene, work.cameras[::8], 0.01).need, "opacity": scene.opacities,
        "volume": volume_term(scene), "lot": np.random.default_rng(0).random(len(scene)),
    }  # fmt: skip
    more = work.lego.seen(work.recovered(scene))["psnr"]  # as many further steps help the whole scene, too
    keep("pruning", "none", {"psnr": work.lego.seen(scene)["psnr"], "recovered": more})
    for name, score in scores.items():
        some = work.kept(score)
        after = work.lego.seen(work.recovered(some))
        keep("pruning", name, {"psnr": work.lego.seen(some)["psnr"], "recovered": after["psnr"]})


def distilling(work: Work) -> None:
    whole, held = work.pruned(), work.lego.held
    truth = pictures(whole, held)
    few = work.cameras[::9]
    keep("distilling", "degree 3", work.lego.seen(whole))
    for degree in (2, 1):
        cut = whole.with_degree(degree)
        rows = {"cut": cut}
        for views, name in ((work.cameras, f"{len(work.cameras)} views"), (few, f"{len(few)} views")):
            rows[f"taught, {name}"] = distilled(whole, degree, views, work.steps, 0, 0.0)
            rows[f"taught, {name} and pseudo views"] = distilled(whole, degree, views, work.steps, 0)
        for name, scene in rows.items():
            told = {
                "psnr": work.lego.seen(scene)["psnr"],
                "to_teacher": likeness(truth, pictures(scene, held))["psnr"],
            }
            keep("distilling", f"degree {degree}: {name}", told)


def books(work: Work) -> None:
    """Each in a file with the same dial; the others with just so many entries that theirs is no smaller, or with no
    book and rougher steps."""
    small = distilled(work.pruned(), 2, work.cameras, work.steps, 0)
    form = prepared(small, weighed(small, work.cameras[::8], 0.01).logs(slice(None)))
    gs, n = scored(work.recipe, small, work.cameras), len(small)
    truth, lot = pictures(small, work.lego.held), np.random.default_rng(0).random(n)
    for plain in (0, 3):

        def made(
            score: Any, share: float, codes: int, tint: float = 1.0, plain: int = plain
        ) -> tuple[Any, ...]:
            learning = {"rounds": 100, "chunk": 1 << 14, "seed": 0}
            cut = split(form.colours[:, plain:], score, share=share, codes=codes, **learning)
            return len(cut.book), *write(form, cut, 0.02, tint)

        found = {"by significance, 60 %": made(gs, 0.6, 128)}
        goal = found["by significance, 60 %"][1].size
        for name, score, share in (("k-means of all", np.ones(n), 1.0), ("60 % by lot", lot, 0.6)):
            found[name] = least(goal, lambda k, score=score, share=share: made(score, share, int(k)), 1, n)
        found["no book, rougher"] = least(goal, lambda k: made(gs, 0.0, 0, 20.0 / k), 1, 200)
        for name, (codes, stream, back, parts, _) in found.items():
            told = {"bytes": stream.size, "codes": codes, "psnr": work.lego.seen(back)["psnr"]}
            told["to_unpacked"] = likeness(truth, pictures(back, work.lego.held))["psnr"]
            kind = "of harmonics" if plain else "of all colours"
            keep(
                "books",
                f"{name}, {kind}",
                told | {k: parts[k] for k in ("base", "mask", "own", "book", "index")},
            )


def least(goal: int, made: Any, low: float, high: float) -> Any:
    """What is made of the least number whose stream is no smaller than the goal, nearly."""
    best = made(high)
    for _ in range(9):
        middle = (low * high) ** 0.5
        found = made(middle)
        if found[1].size >= goal:
            best, high = found, middle
        else:
            low = middle
    return best
