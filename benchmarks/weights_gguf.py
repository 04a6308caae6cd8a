"""Packed, unpacked as GGUF, and read by llama.cpp: python benchmarks/weights_gguf.py --llama-python /path/to/python

The interpreter has xllamacpp. SmolLM2 in grids that GGUF has (exact) and in one that it has not (rounded to Q8_0):
bytes, types, and how much of llama.cpp's greedy answers is what the packed module answers itself. Texts are compared
letter by letter up to the first difference: llama.cpp rounds tokens to 8 bits, so that near ties fall otherwise.
Writes results/weights_gguf.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import Any

import gguf
import torch

from holdall import verbs
from holdall.dropins.gguf import GGUF
from holdall.report import provenance
from holdall.weights import MixLLM, Model, Nothing, RoundToNearest
from holdall.weights import open as open_packed

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "weights_gguf.json"
CASES: dict[str, tuple[Any, str | None, str | None]] = {  # method, budget, --gguf
    "rtn, 4 bits, groups of 32": (RoundToNearest(bits=4, group=32), None, None),
    "rtn, 5 bits, groups of 64": (RoundToNearest(bits=5), None, None),
    "not packed: floats": (Nothing(), None, None),
    "mixllm, a step a row, columns scaled": (MixLLM(windows=4, window=128), "70MB", "Q8_0"),
}
ASKED = (
    "Why is the sky blue?", "What is the capital of France?", "Write three sentences about the sea.",
    "What is 12 + 30?", "Name three animals that live in the water.", "Who wrote Hamlet?",
)  # fmt: skip
ODD = "héllo  wörld\n\n\n   tabs\t\tx 12345 3.14 日本語 😀 don't WON'T"


def alike(ours: str, theirs: str) -> float:
    """The share of the longer text before the first difference."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    return same / max(1, len(ours), len(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-python", required=True)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    x = Model.read("smollm2")
    tokenizer = x.tokenizer()
    prompts = [tokenizer.chat([{"role": "user", "content": q}]) for q in ASKED]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps({"prompts": prompts, "tokens": given.tokens, "text": ODD}))
        for name, (method, budget, form) in CASES.items():
            hold, out = f"{folder}/m.hold", f"{folder}/m.gguf"
            size = method.encode(x, budget, to=hold).nbytes
            verbs.unpack(hold, out, form)
            script = str(HERE / "peers" / "llama_greedy.py")
            words = [given.llama_python, script, out, str(asked)]
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            module: Any = open_packed(hold)
            shares, theirs = [], json.loads(told)
            for ids, answer in zip(prompts, theirs["answers"], strict=True):
                made = module.generate(torch.tensor([ids]), max_new_tokens=given.tokens, do_sample=False)
                shares.append(alike(tokenizer.decode(made[0, len(ids) :].tolist()), answer))
            with GGUF.open(out) as written:
                kinds = Counter(gguf.GGMLQuantizationType(e.kind).name for e in written.entries.values())
            rows[name] = {
                "hold_bytes": size, "gguf_bytes": Path(out).stat().st_size, "types": dict(kinds),
                "answers_alike": shares, "tokens_of_text": [len(tokenizer.encode(ODD)), theirs["counted"]],
                "xllamacpp": theirs["version"],
            }  # fmt: skip
            print(name, json.dumps(rows[name]), flush=True)
    RESULTS.write_text(json.dumps({"rows": rows, "provenance": provenance()}, indent=1))


if __name__ == "__main__":
    main()
