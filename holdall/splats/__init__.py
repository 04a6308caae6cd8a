"""3D Gaussian scenes: made small, and seen beside the original."""

from holdall.splats.camera import Camera
from holdall.splats.scene import Scene

__all__ = ["Camera", "Scene"]
