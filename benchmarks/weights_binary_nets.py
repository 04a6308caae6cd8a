"""What `weights_binary.py` trains: two tasks, two small networks, and ways to spoil their inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from holdall.weights.training import digits

SIDE, CLASSES, SEVERITIES = 16, 10, 5
Data = list[tuple[Tensor, Tensor]]


def images(batch: int = 128) -> tuple[Data, Data]:
    """Real: 1,797 handwritten digits, 8 x 8 made 16 x 16."""
    return tuple(
        _batches(
            nn.functional.interpolate(torch.cat([x for x, _ in part]), SIDE, mode="bilinear"),
            torch.cat([y for _, y in part]), batch,
        ) for part in digits()
    )  # fmt: skip


def sounds(batch: int = 128) -> tuple[Data, Data]:
    """Synthetic: spectrograms, 16 bands x 16 times, of ten kinds of tones in noise; no two alike in pitch or length."""
    draw = torch.Generator().manual_seed(7)
    target = torch.arange(1920) % CLASSES
    target = target[torch.randperm(len(target), generator=draw)]
    spectra = torch.stft(
        torch.stack([_wave(int(k), draw) for k in target]), 30, 16, window=torch.hann_window(30), center=False,
        return_complex=True,
    ).abs()[:, None]  # fmt: skip
    loud = torch.log1p(4 * spectra)
    loud = (loud - loud.mean()) / (2 * loud.std())
    x = nn.functional.interpolate(loud, SIDE, mode="nearest").clamp(-1, 1)
    return _batches(x[:1440], target[:1440], batch), _batches(x[1440:], target[1440:], batch)


def _wave(kind: int, draw: torch.Generator) -> Tensor:
    """270 samples: up, down, steady, vibrato, tremolo, two tones, clicks, a step up, a step down, a fading tone."""
    a, b, c, d = torch.rand(4, generator=draw).tolist()
    t = torch.arange(270) / 270
    pitch, loud = torch.full_like(t, 0.08 + 0.3 * a), torch.ones_like(t)
    if kind in (0, 1):
        pitch = 0.05 + 0.1 * a + (0.15 + 0.15 * b) * (t if kind == 0 else 1 - t)
    elif kind == 3:
        pitch = pitch + 0.05 * torch.sin(2 * math.pi * (2 + 2 * b) * t)
    elif kind == 4:
        loud = 0.5 + 0.5 * torch.sin(2 * math.pi * (2 + 2 * b) * t)
    elif kind == 6:
        loud = ((t * (4 + 3 * b)) % 1 < 0.15).float()
    elif kind in (7, 8):
        pitch = pitch - 0.04 + 0.1 * ((t > 0.3 + 0.4 * b) == (kind == 7)).float()
    elif kind == 9:
        loud = torch.exp(-(3 + 3 * b) * t)
    wave = loud * torch.sin(2 * math.pi * torch.cumsum(pitch, 0) + 6 * c)
    if kind == 5:
        wave = wave / 2 + torch.sin(2 * math.pi * (0.05 + 0.4 * b) * torch.arange(270)) / 2
    return wave + (0.15 + 0.25 * d) * torch.randn(270, generator=draw)


def _batches(x: Tensor, y: Tensor, batch: int) -> Data:
    return list(zip(x.split(batch), y.split(batch), strict=True))


TASKS = {"images": images, "sounds": sounds}


class Block(nn.Module):
    """Two convolutions and a way around them that has no weights."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.stride = outer // inner
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, self.stride, 1, bias=False), nn.BatchNorm2d(outer), nn.Hardtanh(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.after = nn.Hardtanh()  # after a ReLU every sign would be the same

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.stride == 1 else nn.functional.avg_pool2d(x, 2).repeat(1, 2, 1, 1)
        return self.after(self.body(x) + around)


def resnet(width: int = 16, side: int = SIDE, inputs: int = 1) -> nn.Module:
    """Three stages of a block each; [B, inputs, side, side]."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardtanh(),
        Block(width, width), Block(width, 2 * width), Block(2 * width, 4 * width),
        nn.AvgPool2d(side // 8), nn.Flatten(), nn.Linear(4 * width, CLASSES),
    )  # fmt: skip


class Layer(nn.Module):
    """Attention with four heads and an MLP; all six matrices are Linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(seen)
        return x + self.mlp(self.between(x))


class Transformer(nn.Module):
    """Sixteen patches of 4 x 4, two layers."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.patches = nn.Linear(16, width)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # [B, 16, 16]
        return self.head(self.norm(self.layers(self.patches(patches) + self.places)).mean(1))


NETS = {"resnet": resnet, "transformer": Transformer}


def built(net: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[net]()


def _blur(x: Tensor, level: int) -> Tensor:
    for _ in range(level):
        x = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return x


def _noise(x: Tensor, level: int) -> Tensor:
    return x + 0.2 * level * torch.randn(x.shape, generator=torch.Generator().manual_seed(level))


def _impulse(x: Tensor, level: int) -> Tensor:
    draw = torch.rand(x.shape, generator=torch.Generator().manual_seed(level))
    return torch.where(draw < 0.04 * level, torch.sign(draw - 0.02 * level), x)


def _contrast(x: Tensor, level: int) -> Tensor:
    return x * (1 - 0.15 * level) - 0.1 * level


def _pixels(x: Tensor, level: int) -> Tensor:
    small = nn.functional.interpolate(x, SIDE - 2 * level, mode="area")
    return nn.functional.interpolate(small, SIDE, mode="nearest")


CORRUPTIONS = {"noise": _noise, "impulses": _impulse, "blur": _blur, "contrast": _contrast, "pixels": _pixels}


def corrupted(data: Data, kind: str, level: int) -> Data:
    """level: 1 to 5."""
    return [(CORRUPTIONS[kind](x, level), y) for x, y in data]
