"""What fit_training predicts, and what a process then holds; what train-plan counts, and what autograd really keeps.

    OMP_NUM_THREADS=1 python benchmarks/training_fitting.py

A GPT of 18.5 million parameters, 8 sequences of 128 tokens (32 for activations on disk), AdamW; budgets as shares of
what torch alone would hold. Each row has a process of its own in which the libraries have worked once before; peaks are
the kernel's, weights included. Then SmolLM2's activations at 512 tokens. Results: results/training_fitting.json.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "training_fitting.json"
BUDGETS = {"torch": "100%", "ssdtrain": "60%", "fuyou": "60%", "coat": "80%"}


def keep(name: str, row: dict[str, Any]) -> None:
    from holdall.report import provenance

    print(
        name,
        "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
        flush=True,
    )
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(found | {name: row, "provenance": provenance()}, indent=1))


def gpt(width: int, layers: int) -> Any:
    from torch import nn

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(1000, width)
            make = nn.TransformerEncoderLayer
            self.layers = nn.ModuleList(
                make(width, 8, 4 * width, 0.0, batch_first=True, norm_first=True) for _ in range(layers)
            )
            self.head = nn.Linear(width, 1000, bias=False)

        def forward(self, ids: Any) -> Any:
            x, mask = self.words(ids), nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            for layer in self.layers:
                x = layer(x, src_mask=mask, is_causal=True)
            return self.head(x)

    return GPT()


def batches(rows: int, count: int) -> list[Any]:
    import torch

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (count, rows, 129), generator=draw)
    return [(x[:, :-1].contiguous(), x[:, 1:].contiguous()) for x in ids]


def steps(fitted: Any) -> None:
    from holdall.parts.losses import default_loss

    model, optimizer, loader = fitted
    for batch in loader:
        default_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def child(way: str) -> None:
    import torch

    from holdall.memory import release
    from holdall.meter import Meter, resident_bytes
    from holdall.training import Fuyou, Run, fit_training

    def fitted(model: Any, loader: Any) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        return fit_training(model, optimizer, loader, BUDGETS[way], lossy=way == "coat", say=lambda _: None)

    small = gpt(384, 2)  # as wide: matrix libraries keep room for what they multiply
    if way in ("fuyou", "ssdtrain"):
        with Fuyou().open(Run(small, torch.optim.AdamW(small.parameters()))) as session:
            session.step(batches(8, 1)[0])
    else:
        with fitted(small, batches(8, 2)) as three:
            steps(three)
        del three
    del small
    gc.collect()
    release()
    before = resident_bytes()
    torch.manual_seed(0)
    with fitted(gpt(384, 10), batches(32 if way == "ssdtrain" else 8, 4)) as large, Meter() as meter:
        began = resident_bytes()
        steps(large)
    held = began - before + meter.peak_bytes
    row = {"way": large.way.name, "predicted_mb": large.way.predicted / 1e6, "held_mb": held / 1e6}
    print(
        json.dumps(
            row | {"plain_mb": large.facts.plain / 1e6, "held_of_predicted": held / large.way.predicted}
        )
    )


def activations() -> dict[str, Any]:
    import torch

    from holdall.dropins import hub
    from holdall.training import saved_bytes
    from holdall.training.needs import needs
    from holdall.weights.model import Model

    described = Model({}, hub.outline("smollm2")[0], name="smollm2")
    plain = needs(described.skeleton, 1, 512)[0].memory - 16 * described.skeleton().num_parameters()
    model = Model.read("smollm2").build().requires_grad_(True).train()
    ids = torch.zeros(1, 512, dtype=torch.long)
    kept = saved_bytes(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss, model)
    return {"counted_mb": plain / 1e6, "kept_mb": kept / 1e6, "counted_of_kept": plain / kept}


def main() -> None:
    if sys.argv[1:]:
        child(sys.argv[1])
        return
    for way in BUDGETS:
        done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        keep(way, json.loads(done.stdout.splitlines()[-1]))
    keep("activations, smollm2", activations())


if __name__ == "__main__":
    main()
