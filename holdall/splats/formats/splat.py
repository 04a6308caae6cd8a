"""`.splat`: 32 bytes a Gaussian, no header, no view-dependent colour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.splats.formats.values import bytes_of, levels, logits, with_first
from holdall.splats.scene import C0, Scene

if TYPE_CHECKING:
    from holdall.files import Reader

_ROW = np.dtype([("means", "<f4", 3), ("sizes", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
_LEAST = np.finfo(np.float32).tiny  # a size of 0 has no logarithm


def read(file: Reader) -> Scene:
    if file.size % _ROW.itemsize:
        raise CorruptArtefact(file.name, f"its {file.size:,} bytes are no multiple of {_ROW.itemsize}")
    rows = np.frombuffer(file.read(0, file.size), _ROW)
    sizes = rows["sizes"]
    return Scene(
        means=rows["means"],
        scales=np.log(np.where(sizes == 0, _LEAST, sizes)),
        quats=(rows["quats"].astype(np.float32) - 128) / 128,
        opacities=logits(rows["rgba"][:, 3]),
        sh=with_first((rows["rgba"][:, :3] / 255 - 0.5) / C0),
    )


def pieces(scene: Scene) -> Iterator[bytes]:
    """The file; colours outside of 0 to 1 and all but the first harmonic are cut off."""
    rows = np.empty(len(scene), _ROW)
    rows["means"] = scene.means
    with np.errstate(over="ignore"):
        rows["sizes"] = np.minimum(np.exp(scene.scales), np.finfo(np.float32).max)
    rows["rgba"][:, :3] = bytes_of(255 * (0.5 + C0 * scene.sh[:, 0]))
    rows["rgba"][:, 3] = levels(scene.opacities)
    unit = scene.quats / np.abs(scene.quats).max(1, keepdims=True)
    rows["quats"] = bytes_of(128 + 128 * unit / np.linalg.norm(unit, axis=1, keepdims=True))
    yield rows.tobytes()
