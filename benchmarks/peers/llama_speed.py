"""Speed of llama.cpp on one thread, by the CPU's clock: python llama_speed.py model.gguf ids.json (needs xllamacpp).

Prints JSON. The prompt is read once with one token to follow and once with 1 + `tokens`: the difference is decoding.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import xllamacpp as xlc


def run(path, ids, tokens, repeat):
    params = xlc.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_gpu_layers, params.n_parallel = len(ids) + tokens + 64, 0, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_prompt = params.warmup = False
    server = xlc.Server(params)

    def answer(prompt, count):
        asked = {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        start = time.process_time()
        told = server.handle_completions(asked)
        return time.process_time() - start, told

    answer(ids[:8], 2)
    prefill = min(answer(ids, 1)[0] for _ in range(repeat))
    short = min(answer(ids[:16], 1)[0] for _ in range(repeat))
    long = min(answer(ids[:16], 1 + tokens)[0] for _ in range(repeat))
    return {"prefill": len(ids) / prefill, "decode": tokens / (long - short), "version": version("xllamacpp")}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps(run(sys.argv[1], asked["ids"], asked["tokens"], asked["repeat"])))
