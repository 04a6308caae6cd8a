"""Spacetime Gaussians: a scene that moves, in which each Gaussian has its time, its way, its turning and its colours.

scene = followed(moving)                       # of any moving scene, from where its Gaussians are at some times
scene.at(0.3)                                  # a Scene, as any renderer draws it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.splats.moving import Moving, moment
from holdall.splats.scene import C0, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from holdall.splats.camera import Camera

torch = lazy("torch", extra="splats")

SHAPES: dict[str, tuple[int, ...]] = {
    "means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "motion": (3, 3), "spins": (4,), "times": (),
    "spans": (), "features": (9,),
}  # fmt: skip
HIDDEN = 6  # neurons of the decoder
_WAYS = 32  # directions that harmonics are fitted to
_SPAN = 20.0  # of logarithms of spans, at most
_LEAST, _MOST = -30.0, -1e-6  # logarithms of an opacity


@dataclass(frozen=True, eq=False)
class SpacetimeScene(Moving):
    """N Gaussians, all float32, none of them activated.

    means [N, 3], scales, quats, opacities: as a Scene has them, at the Gaussian's own time. times [N]: of 0 to 1;
    spans [N], logarithms: how long it shows before and after, as a bell. motion [N, 3, 3]: what of its way grows with
    the time from its own, with its square and its cube. spins [N, 4]: what its quaternion gains in all the time.
    features [N, 9]: three of colour; three that show by direction; three that grow with the time from its own.
    decoder [9, 6], [6, 3]: what the last six and the direction add to the colour.
    """

    means: NDArray[Any]
    scales: NDArray[Any]
    quats: NDArray[Any]
    opacities: NDArray[Any]
    motion: NDArray[Any]
    spins: NDArray[Any]
    times: NDArray[Any]
    spans: NDArray[Any]
    features: NDArray[Any]
    decoder: tuple[NDArray[Any], NDArray[Any]]
    cameras: tuple[Camera, ...] = ()

    def __post_init__(self) -> None:
        for name, rest in SHAPES.items():
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            object.__setattr__(self, name, array)
            if array.shape != (wanted := (len(self.means), *rest)):
                raise BadInput(name, array.shape, f"{wanted}")
        layers = tuple(np.ascontiguousarray(x, dtype=np.float32) for x in self.decoder)
        if [x.shape for x in layers] != [(9, HIDDEN), (HIDDEN, 3)]:
            raise BadInput("decoder", [x.shape for x in layers], f"(9, {HIDDEN}) and ({HIDDEN}, 3)")
        object.__setattr__(self, "decoder", layers)

    def __len__(self) -> int:
        return len(self.means)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in SHAPES}

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {**self.columns(), "decoder.0": self.decoder[0], "decoder.1": self.decoder[1]}

    def take(self, which: Any) -> SpacetimeScene:
        taken: dict[str, Any] = {name: np.array(a[which]) for name, a in self.columns().items()}
        return replace(self, **taken)

    def checked(self, what: str = "scene") -> SpacetimeScene:
        """Itself, or BadInput for what cannot be drawn."""
        if not len(self):
            raise BadInput(what, "no Gaussians", "at least one")
        for name, array in self.arrays().items():
            if not np.isfinite(array).all():
                raise BadInput(what, f"{name} of NaN or infinity", "finite numbers")
        lost = int((np.abs(self.quats).max(1) == 0).sum())
        if lost:
            raise BadInput(
                what, f"{lost} of {len(self)} Gaussians with a rotation of length 0", "quaternions"
            )
        return self

    def at(self, t: float) -> Scene:
        """With harmonics of degree 2 that are fitted to what the decoder gives in all directions."""
        with torch.no_grad():
            columns = {name: torch.from_numpy(a) for name, a in self.columns().items()}
            means, scales, quats, opacities, off = placed(columns, moment(t))
            layers = [torch.from_numpy(x) for x in self.decoder]
            ways, solved = _directions()
            wide = columns["features"][:, None].expand(-1, len(ways), -1)
            shown = coloured(wide, off[:, None], ways.expand(len(self), -1, -1), layers)  # [N, W, 3]
            sh = torch.einsum("kw,nwc->nkc", solved, C0 * shown).clamp(-1e4, 1e4)
        return Scene(
            means.numpy(), scales.numpy(), quats.numpy(), opacities.numpy(), sh.numpy(), self.cameras
        )


def placed(c: Mapping[str, Tensor], t: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(means, scales, quats, opacities at time t; how far that is from each Gaussian's own time [N])."""
    off = t - c["times"]
    one = off[:, None]
    way = c["motion"]
    means = c["means"] + one * (way[:, 0] + one * (way[:, 1] + one * way[:, 2]))
    turn = c["quats"] + one * c["spins"]
    turn = torch.where(turn.detach().abs().amax(1, keepdim=True) > 0, turn, c["quats"])
    turn = turn / turn.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)  # its square may be too large
    quats = torch.nn.functional.normalize(turn, dim=1)
    bell = (off * torch.exp(-c["spans"].clamp(-_SPAN, _SPAN))) ** 2
    seen = torch.nn.functional.logsigmoid(c["opacities"]) - bell
    return means, c["scales"], quats, logit(seen), off


def logit(seen: Tensor) -> Tensor:
    """Of an opacity whose logarithm it is."""
    seen = seen.clamp(_LEAST, _MOST)
    return seen - torch.log(-torch.expm1(seen))


def coloured(features: Tensor, off: Tensor, ways: Tensor, layers: Any) -> Tensor:
    """[..., 3], coefficients of the harmonic of degree 0, as seen along unit vectors [..., 3]."""
    one, two = layers
    told = torch.cat([features[..., 3:6], features[..., 6:] * off[..., None], ways], -1)
    return features[..., :3] + torch.relu(told @ one) @ two


def _directions() -> tuple[Tensor, Tensor]:
    """(directions on all sides [W, 3], what takes colours seen along them to harmonics of degree 2 [9, W])."""
    from holdall.splats.colour_field import evenly
    from holdall.splats.naive_raster import naive_harmonics

    ways = torch.from_numpy(evenly(_WAYS))
    return ways, torch.linalg.pinv(naive_harmonics(ways)[:, :9])


def at_rest(scene: Scene, seed: int = 0) -> SpacetimeScene:
    """To learn from: a still scene's Gaussians, each with a time by lot, none of them moving yet."""
    rng, n = np.random.default_rng(seed), len(scene)
    features = np.zeros((n, 9), np.float32)
    features[:, :3] = scene.sh[:, 0]
    return SpacetimeScene(
        scene.means, scene.scales, scene.quats, scene.opacities, np.zeros((n, 3, 3)), np.zeros((n, 4)),
        rng.random(n), np.zeros(n), features, _fresh(rng), scene.cameras,
    )  # fmt: skip


def _fresh(rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """A decoder that adds little yet."""
    return 0.5 * rng.standard_normal((9, HIDDEN)), 0.05 * rng.standard_normal((HIDDEN, 3))
