"""Fine-tune SmolLM2-135M with AdamW in 1.2 GB of memory, keep checkpoints, and go on from the last one.

    python examples/finetune_small_memory.py [--memory 1.2GB] [--steps 6] [--length 128]

Plain training holds some 2.4 GB. The text is the standard library's own: nothing is downloaded.
"""

import argparse
import inspect
import tempfile
import textwrap

import torch

from holdall.checkpoints import DataStates
from holdall.meter import resident_bytes
from holdall.training import fit_training
from holdall.weights import Model


def batches(tokenizer, steps: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Some of textwrap's documentation and code, one sequence a batch."""
    ids = tokenizer.encode(inspect.getsource(textwrap))
    cut = [torch.tensor([ids[i * length : (i + 1) * length]]) for i in range(len(ids) // length)]
    return [{"input_ids": x, "labels": x} for x in (cut[i % len(cut)] for i in range(steps))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", default="1.2GB")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()

    before = resident_bytes()
    read = Model.read("smollm2")
    loader = batches(read.tokenizer(), args.steps, args.length)
    model = read.build().requires_grad_(True).train()
    model.config.use_cache = False
    read.state.clear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)

    # the three lines
    model, optimizer, loader = fitted = fit_training(model, optimizer, loader, budget=args.memory)
    with fitted, tempfile.TemporaryDirectory() as folder:
        most = 0
        for step, batch in enumerate(loader):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            most = max(most, resident_bytes() - before)
            print(
                f"step {step}: loss {loss.item():.3f}, {most / 1e6:,.0f} MB held at most so far", flush=True
            )
        kept = {"optimizer": optimizer.state_dict(), "step": step}
        with DataStates().open(folder) as checkpoints:
            written = checkpoints.save(step, kept).wait()
            again = checkpoints.load()
        same = all(
            torch.equal(x, y)
            for a, b in zip(
                kept["optimizer"]["state"].values(), again["optimizer"]["state"].values(), strict=True
            )
            for x, y in zip(a.values(), b.values(), strict=True)
        )
        print(
            f"checkpoint of step {again['step']}: {written / 1e6:,.0f} MB on disk, read back the same: {same}"
        )


if __name__ == "__main__":
    main()
