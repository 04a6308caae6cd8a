"""Training: a run that does not fit.

You hold a model, an optimizer and a loop that runs out of memory. Each method makes one of the things that training
holds smaller: states of the optimizer, gradients, parameters, activations; on other workers, in host memory, on
disk, or in fewer bits.
"""

from holdall.training.base import Run
from holdall.training.coat import COATAdamW
from holdall.training.coat_activations import coat_, saved_bytes, uncoat_
from holdall.training.fitting import fit_training
from holdall.training.fuyou import Fuyou
from holdall.training.pytorch_direct import PyTorchDirect, unified
from holdall.training.sgd_sai import SGDSaI
from holdall.training.ssdtrain import SSDTrain, offloaded
from holdall.training.zero import ZeRO
from holdall.training.zero_offload import ZeROOffload

__all__ = [
    "COATAdamW",
    "Fuyou",
    "PyTorchDirect",
    "Run",
    "SGDSaI",
    "SSDTrain",
    "ZeRO",
    "ZeROOffload",
    "coat_",
    "fit_training",
    "offloaded",
    "saved_bytes",
    "uncoat_",
    "unified",
]
