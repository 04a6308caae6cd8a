"""States to try checkpoints on, and how two of them are compared: bit for bit."""

from __future__ import annotations

from typing import Any

from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


def odd() -> dict[str, Any]:
    """One of each thing that breaks careless stores."""
    made = torch.Generator().manual_seed(7)
    w, flat = torch.randn(7, 5, generator=made), torch.arange(60.0)
    return {
        "model": {
            "w": w, "tied": w, "turned": w.t(), "every third": flat[::3], "part": flat[8:20].view(3, 4), "": w[:1],
            "half": w.half(), "brain": w.bfloat16(), "eight": w.to(torch.float8_e4m3fn), "flags": w > 0,
            "none": torch.empty(0, 3), "scalar": torch.tensor(-0.0), "broken": torch.tensor([float("nan"), -1e-45]),
            "long": torch.tensor([2**62, -1]), "permuted": torch.randn(2, 3, 4, generator=made).permute(2, 0, 1),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"lr": 1e-3, "fused": None}]},
        "step": 12, "text": "ü", "loss": 0.1, "empty": [], "list": [1, None, [True, w[0]]],
    }  # fmt: skip


def real(width: int = 64, steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """A small network, with statistics of its batches, and AdamW after some steps: what a run saves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            torch.nn.Linear(width, 4 * width),
            torch.nn.BatchNorm1d(4 * width),
            torch.nn.Linear(4 * width, width),
        ]
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, width)).square().mean().backward()
            optimizer.step()
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }


def copied(state: Any) -> Any:
    """The same state in memory of its own; what was shared is not."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {k: copied(v) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([copied(v) for v in state])
    return state


def same(a: Any, b: Any) -> bool:
    """Types, shapes, keys in order, and every bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _raw(a) == _raw(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def _raw(t: Any) -> bytes:
    return bytes(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def original_bytes(state: Any) -> int:
    """Of all tensors, each name once."""
    if isinstance(state, torch.Tensor):
        return int(state.nbytes)
    if isinstance(state, dict):
        return sum(map(original_bytes, state.values()))
    return sum(map(original_bytes, state)) if isinstance(state, list | tuple) else 0


def spoiled(state: Any) -> None:
    """Change every tensor in place, as a step would."""
    if isinstance(state, torch.Tensor):
        with torch.no_grad():
            state.view(torch.uint8).bitwise_not_() if state.is_contiguous() and state.dim() else state.zero_()
    elif isinstance(state, dict | list | tuple):
        for inner in state.values() if isinstance(state, dict) else state:
            spoiled(inner)
