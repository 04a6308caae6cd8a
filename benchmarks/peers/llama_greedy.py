"""What llama.cpp answers, always the likeliest token: python llama_greedy.py model.gguf asked.json (needs xllamacpp).

asked.json: {"prompts": [[ids], ...], "tokens": n, "text": text}. Prints JSON: the answers, and how many tokens it
makes of the text.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import xllamacpp as xlc


def main() -> None:
    asked = json.loads(Path(sys.argv[2]).read_text())
    params = xlc.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_gpu_layers, params.n_parallel = 1024, 0, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xlc.Server(params)

    def told(prompt, count):
        return server.handle_completions({"prompt": prompt, "n_predict": count, "temperature": 0})

    answers = [told(ids, asked["tokens"])["choices"][0]["text"] for ids in asked["prompts"]]
    counted = told(asked["text"], 1)["usage"]["prompt_tokens"]
    print(json.dumps({"answers": answers, "counted": counted, "version": version("xllamacpp")}))


if __name__ == "__main__":
    main()
