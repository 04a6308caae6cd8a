"""llama.cpp's quants on given token windows: run by benchmarks/weights.py in an interpreter with llama-cpp-python.

Reads {"tokens": [[...], ...], "float": perplexity, "gguf": path} as JSON on standard input, prints one JSON object of
rows. Quants are made here from the shipped GGUF (whose 4-bit grid llama.cpp dequantises exactly).
"""

import ctypes
import json
import math
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

KINDS = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q3_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
    "Q2_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
}


def perplexity(path: str, windows: list[list[int]]) -> float:
    model = llama_cpp.Llama(
        path, n_ctx=len(windows[0]), n_batch=512, logits_all=True, n_threads=1, verbose=False
    )
    losses: list[float] = []
    for ids in windows:
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[: len(ids) - 1], np.float64)
        top = logits.max(1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(1))
        losses += list(total - logits[np.arange(len(ids) - 1), ids[1:]])
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    asked = json.load(sys.stdin)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in {"Q4_1 (shipped)": None, **KINDS}.items():
            path = asked["gguf"]
            if kind is not None:
                path = str(Path(folder) / f"{name}.gguf")
                told = llama_cpp.llama_model_quantize_default_params()
                told.ftype, told.nthread, told.allow_requantize = kind, 1, True
                if llama_cpp.llama_model_quantize(asked["gguf"].encode(), path.encode(), ctypes.byref(told)):
                    continue
            found = perplexity(path, asked["tokens"])
            size = Path(path).stat().st_size
            rows[name] = {"bytes": size, "perplexity": found, "perplexity_ratio": found / asked["float"]}
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
