"""Weights: a model that is too big for your disk or memory.

You hold a model (`Model.read` takes a GGUF, safetensors, Hugging Face folder or a short name) and name a size; you
get one `.hold` file with everything that is needed to run it, and `open` gives a running module. `bitstack` makes a
file of which any prefix is a model, and whose budget can change while it runs; `rtn` is classic group-wise
rounding; `mixllm` gives most bits to the rows that the loss feels most; `formats` stores matrices as INT8 or 8-bit
floats; `binary` trains networks of signs; `sparse` prunes convolutional nets while they train, and they then run
faster; `stable_rps` trains a network in a fixed number of parameters; `none` and `random` are the floors. `quantize_`
makes a module's matrices packed ones where it stands.
"""

from holdall.weights.auto import Auto
from holdall.weights.binary import Binary, binarize
from holdall.weights.binary_adapters import BinaryAdapters
from holdall.weights.bitstack import BitStack
from holdall.weights.coded import Coded
from holdall.weights.edkm import EDKM
from holdall.weights.efficientqat import EfficientQAT
from holdall.weights.formats import Formats
from holdall.weights.mixllm import MixLLM
from holdall.weights.model import Model
from holdall.weights.none import Nothing
from holdall.weights.opening import open, quantize_
from holdall.weights.palettizing import palettize_
from holdall.weights.random import Random
from holdall.weights.rtn import RoundToNearest
from holdall.weights.sparse import Sparse, compile_sparse, sparsify
from holdall.weights.stable_rps import StableRPS

__all__ = [
    "EDKM",
    "Auto",
    "Binary",
    "BinaryAdapters",
    "BitStack",
    "Coded",
    "EfficientQAT",
    "Formats",
    "MixLLM",
    "Model",
    "Nothing",
    "Random",
    "RoundToNearest",
    "Sparse",
    "StableRPS",
    "binarize",
    "compile_sparse",
    "open",
    "palettize_",
    "quantize_",
    "sparsify",
]
