"""3D Gaussian scenes: made small, and seen beside the original."""

from holdall.splats.camera import Camera
from holdall.splats.coded import Coded
from holdall.splats.compact3dgs import Compact3DGS
from holdall.splats.momentum_gs import MomentumGS
from holdall.splats.none import Nothing
from holdall.splats.opacity import Opacity
from holdall.splats.random import Random
from holdall.splats.scene import Scene

__all__ = ["Camera", "Coded", "Compact3DGS", "MomentumGS", "Nothing", "Opacity", "Random", "Scene"]
