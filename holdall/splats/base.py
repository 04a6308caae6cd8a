"""The contract of the room: a codec whose thing is a `Scene`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, CorruptArtefact
from holdall.kinds import Codec, Spend
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.method import Method
    from holdall.packed import Packed


@dataclass(frozen=True, kw_only=True)
class SplatCodec(Codec):
    """Packs a scene of 3D Gaussians into one file.

    Budgets count the whole file; a share is of the scene's bytes as float32 (`Scene.nbytes`), bits are per number.
    The order of Gaussians is not kept: renderers sort them anyway.
    """

    room: ClassVar[str] = "splats"

    @staticmethod
    def allowed(scene: Scene, budget: Spend) -> int | None:
        """The budget in bytes of the file."""
        asked = Budget.parse(budget)
        return None if asked is None else asked.limit(scene.nbytes, scene.elements)

    @classmethod
    def sniff(cls, url: str, head: bytes) -> bool:
        from holdall.splats.formats import known

        return known(url, head) is not None

    @classmethod
    def read_input(cls, url: str) -> Scene:
        from holdall.splats.formats import read

        return read(url)

    @classmethod
    def with_text(cls, x: Scene, text: str) -> Scene:
        """cameras of a NeRF transforms.json: what `--calibrate` gives to this room."""
        from holdall.splats.posed import cameras_of

        return replace(x, cameras=tuple(cameras_of(text)))

    @classmethod
    def write_output(cls, x: Any, url: str) -> None:
        from holdall.splats.formats import write

        write(x, url)


def within(recipe: Method, *ranges: tuple[str, float, float]) -> None:
    """BadInput for the first of these knobs (name, least, most) that is outside."""
    for name, low, high in ranges:
        if not low <= getattr(recipe, name) <= high:
            raise BadInput(name, getattr(recipe, name), f"{low} to {high}")


def stream_of(packed: Packed, what: str) -> NDArray[Any]:
    """The one array of a file of this room; CorruptArtefact where it is not."""
    if "scene" not in packed.arrays:
        raise CorruptArtefact(what, "it has no stream")
    return packed.arrays["scene"]


def given(x: Any) -> Scene:
    """What a codec was asked to pack, if it can be drawn."""
    if not isinstance(x, Scene):
        raise BadInput("scene", type(x).__name__, "a Scene of 3D Gaussians, or a file of one")
    return x.checked()
