"""Checkpoints: training state to keep, and to find again after a kill, on more workers or fewer.

You hold the state of a run: parameters, states of the optimizer, step, random numbers, where the data stands.
"""

from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
from holdall.checkpoints.copying import DeepCopy
from holdall.checkpoints.datastates import DataStates
from holdall.checkpoints.none import TorchSave

__all__ = ["ByteCheckpoint", "DataStates", "DeepCopy", "TorchSave"]
