"""PLY of spacetime Gaussians, as their training writes them: trbf_center and trbf_scale are a Gaussian's time and span.

Viewers of such files read places, motion_0 to 8, omega_0 to 3 and the colour f_dc_0 to 2; what direction and time add
to it is in f_way, f_time and the element `decoder`, which others pass over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.files import atomic_write, open_reader
from holdall.splats.formats.ply import columns, elements
from holdall.splats.spacetime import HIDDEN, SHAPES, SpacetimeScene

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 8 << 10  # read and written at a time


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{i}" for i in range(count))


_NAMES = {
    "means": ("x", "y", "z"),
    "times": ("trbf_center",),
    "spans": ("trbf_scale",),
    "motion": _numbered("motion", 9),
    "colour": _numbered("f_dc", 3),
    "more": (*_numbered("f_way", 3), *_numbered("f_time", 3)),
    "opacities": ("opacity",),
    "scales": _numbered("scale", 3),
    "quats": _numbered("rot", 4),
    "spins": _numbered("omega", 4),
}
_DECODER = _numbered("d", 9 * HIDDEN + HIDDEN * 3)


def read(url: str) -> SpacetimeScene:
    """BadInput or CorruptArtefact where there is none."""
    with open_reader(url) as file:
        parts = elements(file)
        vertex = parts.get("vertex")
        if vertex is None or vertex.row is None:
            raise BadInput("PLY", f"{url}, without vertices of fixed length", "spacetime Gaussians")
        wanted = [p for name, names in _NAMES.items() for p in names if name != "more"]
        missing = [p for p in wanted if p not in vertex.names]
        if missing:
            raise BadInput(
                "PLY", f"{url}, whose vertices have no {', '.join(missing)}", "spacetime Gaussians"
            )
        full = all(p in vertex.names for p in _NAMES["more"])
        found = {name: np.zeros((vertex.count, len(names)), np.float32) for name, names in _NAMES.items()}
        for first in range(0, vertex.count, _ROWS):
            block = vertex.rows(file, first, min(vertex.count, first + _ROWS))
            for name, names in _NAMES.items():
                if name != "more" or full:
                    found[name][first : first + len(block)] = columns(block, names)
        decoder, told = np.zeros(len(_DECODER), np.float32), parts.get("decoder")
        if told is not None and told.row is not None and told.count == 1 and set(_DECODER) <= set(told.names):
            decoder = columns(told.rows(file, 0, 1), _DECODER)[0]
    return _scene(found, decoder).checked(url)


def _scene(found: dict[str, NDArray[Any]], decoder: NDArray[Any]) -> SpacetimeScene:
    n = len(found["means"])
    found["features"] = np.concatenate([found.pop("colour"), found.pop("more")], 1)
    shaped: dict[str, Any] = {name: found[name].reshape(n, *shape) for name, shape in SHAPES.items()}
    cut = 9 * HIDDEN
    return SpacetimeScene(
        **shaped, decoder=(decoder[:cut].reshape(9, HIDDEN), decoder[cut:].reshape(HIDDEN, 3))
    )


def write(x: SpacetimeScene, url: str) -> None:
    if not url.lower().endswith(".ply"):
        raise BadInput("output", url, "a name that ends with .ply: of a moving scene")
    with atomic_write(url) as out:
        for piece in pieces(x):
            out.write(piece)
        out.publish()


def pieces(x: SpacetimeScene) -> Iterator[bytes]:
    """The file: little-endian float32."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(x)}"]
    lines += [f"property float {name}" for names in _NAMES.values() for name in names]
    lines += ["element decoder 1", *(f"property float {name}" for name in _DECODER), "end_header\n"]
    yield "\n".join(lines).encode()
    held = {**x.columns(), "colour": x.features[:, :3], "more": x.features[:, 3:]}
    for first in range(0, len(x), _ROWS):
        some = [held[name][first : first + _ROWS].reshape(-1, len(names)) for name, names in _NAMES.items()]
        yield np.concatenate(some, 1).astype("<f4").tobytes()
    yield np.concatenate([a.reshape(-1) for a in x.decoder]).astype("<f4").tobytes()
