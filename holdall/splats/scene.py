"""A scene of 3D Gaussians, as training leaves it: numbers in memory, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.camera import Camera

C0 = 0.28209479177387814  # of the harmonic of degree 0: colour = 0.5 + C0 * sh[0]
NAMES = ("means", "scales", "quats", "opacities", "sh")


@dataclass(frozen=True, eq=False)
class Scene:
    """N Gaussians, all float32, none of them activated.

    means [N, 3], in the scene's units; scales [N, 3], logarithms; quats [N, 4], w first, of any length but 0;
    opacities [N], logits; sh [N, K, 3], coefficients of K = (degree + 1)^2 harmonics for red, green and blue.
    cameras: views that the scene is for, in the order that the user gave; none are needed.
    """

    means: NDArray[Any]
    scales: NDArray[Any]
    quats: NDArray[Any]
    opacities: NDArray[Any]
    sh: NDArray[Any]
    cameras: tuple[Camera, ...] = ()

    def __post_init__(self) -> None:
        for name in NAMES:
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            object.__setattr__(self, name, array)
        n = len(self.means)
        wanted = {"means": (n, 3), "scales": (n, 3), "quats": (n, 4), "opacities": (n,)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise BadInput(name, getattr(self, name).shape, f"{shape}")
        if self.sh.ndim != 3 or self.sh.shape[::2] != (n, 3) or self.sh.shape[1] not in (1, 4, 9, 16):
            raise BadInput("sh", self.sh.shape, f"({n}, 1, 4, 9 or 16, 3)")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        return int(self.sh.shape[1] ** 0.5) - 1

    @property
    def elements(self) -> int:
        """Numbers, 14 a Gaussian without view-dependent colour and 59 with all of it."""
        return sum(a.size for a in self.arrays().values())

    @property
    def nbytes(self) -> int:
        """As float32: what a share of a budget is a share of."""
        return 4 * self.elements

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in NAMES}

    def seen_from(self, camera: Camera) -> Scene:
        """What that camera is shown, the same Gaussians in order: itself, unless how they look depends on the view in
        more than harmonics."""
        return self

    def take(self, which: Any) -> Scene:
        """Those Gaussians, in that order; shares no memory with the whole."""
        taken: dict[str, Any] = {name: np.array(a[which]) for name, a in self.arrays().items()}
        return replace(self, **taken)

    def with_degree(self, degree: int) -> Scene:
        """Coefficients cut off, or filled up with zeros."""
        count = (degree + 1) ** 2
        sh = np.zeros((len(self), count, 3), np.float32)
        kept = min(count, self.sh.shape[1])
        sh[:, :kept] = self.sh[:, :kept]
        return replace(self, sh=sh)

    def checked(self, what: str = "scene") -> Scene:
        """Itself, or BadInput for what no renderer can draw: no Gaussians, NaN, infinities, rotations of length 0."""
        if not len(self):
            raise BadInput(what, "no Gaussians", "at least one")
        for name, array in self.arrays().items():
            fine = np.isfinite(array)
            if not fine.all():
                bad = int(np.unique(np.nonzero(~fine)[0]).size)
                raise BadInput(
                    what, f"{bad} of {len(self)} Gaussians with {name} of NaN or infinity", "finite numbers"
                )
        lost = int((np.abs(self.quats).max(1) == 0).sum())
        if lost:
            raise BadInput(
                what, f"{lost} of {len(self)} Gaussians with a rotation of length 0", "quaternions"
            )
        return self

    def box(self, share: float = 0.98) -> tuple[NDArray[Any], NDArray[Any]]:
        """(low, high) float32 [3] of the middle share of the means along each axis: far strays do not count."""
        rest = (1 - share) / 2
        low, high = np.quantile(self.means, [rest, 1 - rest], axis=0).astype(np.float32)
        return low, high
