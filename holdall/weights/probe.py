"""Measures one opened model in this process: `python -m holdall.weights.probe '{"path": ...}'` prints JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def run(asked: dict[str, Any]) -> dict[str, float]:
    """Opens, answers greedily, and says how fast and in how much memory."""
    import torch

    from holdall.meter import Meter
    from holdall.packed import Packed
    from holdall.verbs import method_of
    from holdall.weights import quality

    if asked.get("threads"):
        torch.set_num_threads(asked["threads"])
    quality.warm()
    with Meter() as meter, Packed.open(asked["path"]) as packed:
        method: Any = method_of(packed)
        module = method.open(packed, asked.get("memory"))
        read = packed.traffic
        ids = torch.tensor([asked["prompt"]])
        with torch.inference_mode():
            out = module(input_ids=ids, use_cache=True)
            cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
            module(input_ids=last, past_key_values=cache)  # kernels are loaded before the clock starts
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(asked["tokens"]):
                last = module(input_ids=last, past_key_values=cache).logits[:, -1:].argmax(-1)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "peak_bytes": meter.peak_bytes,
        "read_bytes": read,
        "tokens_per_second": asked["tokens"] / wall,
        "tokens_per_cpu_second": asked["tokens"] / cpu,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
