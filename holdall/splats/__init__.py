"""3D Gaussian scenes: made small, and seen beside the original."""

from holdall.splats.camera import Camera
from holdall.splats.coded import Coded
from holdall.splats.compact3dgs import Compact3DGS
from holdall.splats.compact_moving import CompactMoving
from holdall.splats.light4gs import Light4GS
from holdall.splats.lightgaussian import LightGaussian
from holdall.splats.momentum_gs import MomentumGS
from holdall.splats.moving_random import MovingRandom
from holdall.splats.none import Nothing
from holdall.splats.opacity import Opacity
from holdall.splats.random import Random
from holdall.splats.scene import Scene

__all__ = [
    "Camera",
    "Coded",
    "Compact3DGS",
    "CompactMoving",
    "Light4GS",
    "LightGaussian",
    "MomentumGS",
    "MovingRandom",
    "Nothing",
    "Opacity",
    "Random",
    "Scene",
]
