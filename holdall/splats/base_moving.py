"""The contract of codecs whose thing is a moving scene: a `HexScene`, which is how 4D Gaussian splatting leaves one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kinds import Codec, Spend

if TYPE_CHECKING:
    from holdall.splats.hexplane import HexScene


@dataclass(frozen=True, kw_only=True)
class MovingCodec(Codec):
    """Packs a moving scene into one file.

    Budgets count the whole file; a share is of the scene's numbers as float32 (`Moving.nbytes`), bits are per number.
    Files are folders as 4DGaussians writes them: point_cloud.ply beside deformation.pth.
    """

    room: ClassVar[str] = "splats"
    measured_by: ClassVar[str] = "quality_moving"

    @staticmethod
    def allowed(x: HexScene, budget: Spend) -> int | None:
        """The budget in bytes of the file."""
        asked = Budget.parse(budget)
        return None if asked is None else asked.limit(x.nbytes, x.elements)

    @classmethod
    def sniff(cls, url: str, head: bytes) -> bool:
        from holdall.splats.hexplane_folder import known

        return not head and known(url)

    @classmethod
    def read_input(cls, url: str) -> HexScene:
        from holdall.splats.hexplane_folder import read

        return read(url)

    @classmethod
    def with_text(cls, x: HexScene, text: str) -> HexScene:
        """cameras of a NeRF transforms.json: what `--calibrate` gives to this room."""
        from dataclasses import replace

        from holdall.splats.posed import cameras_of

        return replace(x, still=replace(x.still, cameras=tuple(cameras_of(text))))

    @classmethod
    def write_output(cls, x: Any, url: str) -> None:
        from holdall.splats.hexplane_folder import write

        write(x, url)


def given_moving(x: Any) -> HexScene:
    """What a codec was asked to pack, if it can be drawn."""
    from holdall.splats.hexplane import HexScene

    if not isinstance(x, HexScene):
        raise BadInput("moving scene", type(x).__name__, "a HexScene, or a folder of 4DGaussians")
    return x.checked()
