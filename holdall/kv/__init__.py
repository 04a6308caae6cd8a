"""kv: a context that is too long.

A language model remembers what it has read as a key and a value for every token, layer and key/value head: 23 kB
a token in half precision for a model of 135 million weights, 128 kB for one of 8 billion. This room holds that memory
within a budget. A method scores the entries of a layer; the base keeps the best in each head and frees the others.
`holdall.dropins.transformers.Cache` puts any method and budget into `model.generate`.
"""

from holdall.kv.ape import APE
from holdall.kv.base import KVSelector
from holdall.kv.duo import Duo
from holdall.kv.ems import EMS
from holdall.kv.entries import Entries
from holdall.kv.h2o import H2O
from holdall.kv.instinfer import InstInfer
from holdall.kv.kvmerger import KVMerger
from holdall.kv.mikv import MiKV
from holdall.kv.none import Everything
from holdall.kv.pages import Geometry
from holdall.kv.prefixkv import PrefixKV
from holdall.kv.random import Random
from holdall.kv.recent import Recent
from holdall.kv.snapkv import SnapKV
from holdall.kv.vattention import VAttention
from holdall.kv.zipcache import ZipCache

__all__ = [
    "APE",
    "EMS",
    "H2O",
    "Duo",
    "Entries",
    "Everything",
    "Geometry",
    "InstInfer",
    "KVMerger",
    "KVSelector",
    "MiKV",
    "PrefixKV",
    "Random",
    "Recent",
    "SnapKV",
    "VAttention",
    "ZipCache",
]
