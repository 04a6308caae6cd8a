"""Dense matrices times a few tokens, faster than torch multiplies them. Imported only when a model runs."""

from __future__ import annotations

from types import TracebackType

import torch
from torch.nn import functional

MOST = 16  # tokens; for more torch's own product is as fast, and for one of float32
WORTH = 3_000_000  # weights that are worth another thread
_LEAST = {torch.float32: 2, torch.bfloat16: 1}


class FewTokens:
    """While it is entered, a module's dense linears take up to 16 tokens by `kernels.few`, and all else as they did.

    with FewTokens(net): net(ids)

    Sums are float32 and rounded once, as torch's are; their order differs. For inference, and one thread at a time.
    """

    def __init__(self, net: torch.nn.Module):
        linears = [m for m in net.modules() if type(m) is torch.nn.Linear and "forward" not in vars(m)]
        self._linears = [(m, _Few(m)) for m in linears if _fits(m.weight)]

    def __enter__(self) -> None:
        for module, few in self._linears:
            vars(module)["forward"] = few

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, _ in self._linears:
            del vars(module)["forward"]


class _Few:
    def __init__(self, linear: torch.nn.Linear):
        self.weight, self.bias = linear.weight.detach(), linear.bias
        plain = self.weight if self.weight.dtype == torch.float32 else self.weight.view(torch.uint16)
        self._held, self._least = plain.numpy(), _LEAST[self.weight.dtype]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.numel() // x.shape[-1]
        if not self._least <= tokens <= MOST or x.dtype != self.weight.dtype:
            return functional.linear(x, self.weight, self.bias)
        from holdall.parts.rows import by_rows
        from holdall.weights.kernels import few

        m, n = self.weight.shape
        flat = x.detach().reshape(tokens, n).float().contiguous()
        out = torch.empty(tokens, m)
        by_rows(few, m, m * n / WORTH, self._held, flat.numpy(), out.numpy())
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], m).to(x.dtype)


def _fits(weight: torch.Tensor) -> bool:
    columns = weight.shape[1]
    return (
        weight.dtype in _LEAST
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and columns % 16 == 0
    )
