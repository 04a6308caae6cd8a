"""What the room's optimizers share: torch's own contract beside a citation, and states that load as they were saved."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import chain
from types import new_class
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.method import Cited
from holdall.optional import lazy

if TYPE_CHECKING:
    from torch.optim import Optimizer as _Contract
else:
    _Contract = object  # what is built is torch's; the class alone must not load torch

torch = lazy("torch", extra="training")


@cache
def _built(cls: Any) -> Any:
    """The same class, of which torch's optimizer is the last base."""
    from torch.optim import Optimizer

    if issubclass(cls, Optimizer):
        return cls
    told = {"__module__": cls.__module__, "__doc__": cls.__doc__, "plain": cls}
    return new_class(cls.__name__, (cls, Optimizer), exec_body=lambda body: body.update(told))


def _blank(cls: type[Any]) -> Any:
    named: Any = cls
    return named.__new__(named)


class TorchOptimizer(Cited, _Contract):
    """An optimizer of torch. Objects are torch's, whatever asks; the class itself loads no torch.

    A class writes `step`, declares its `knobs` (of the arguments beside the parameters and the learning rate), says in
    `fits` which settings it takes, and in `taken` what a saved state of one parameter must be.
    """

    room: ClassVar[str] = "training"
    kind: ClassVar[str] = "optimizer"
    plain: ClassVar[type[Any]]
    most_bytes: ClassVar[float]  # of state, for each parameter in float32, where tensors are not tiny

    def __new__(cls, *args: Any, **named: Any) -> Any:
        whole: Any = cls
        return object.__new__(_built(whole))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (type(self).plain,), self.__getstate__()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                if p.is_complex() or not p.is_floating_point():
                    raise BadInput("parameter", str(p.dtype), "real floating-point numbers")
            self.fits(self.param_groups[-1])
        except BadInput:
            self.param_groups.pop()
            raise

    def fits(self, group: Mapping[str, Any]) -> None:
        """BadInput where a group's settings are none that it works with."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, but tensors keep the types that they were saved in: torch casts all to their parameter's."""
        found: list[Mapping[str, Any]] = []

        def aside(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            found.append(given)
            return {**given, "state": {}}

        hook = self.register_load_state_dict_pre_hook(aside)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            hook.remove()
        for group in self.param_groups:  # another optimizer's groups know less
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        names = chain.from_iterable(g["params"] for g in found[0]["param_groups"])
        params = chain.from_iterable(
            ((p, {k: v for k, v in g.items() if k != "params"}) for p in g["params"])
            for g in self.param_groups
        )
        for name, (p, group) in zip(names, params, strict=True):
            if name in found[0]["state"]:
                self.state[p] = self.taken(p, dict(found[0]["state"][name]), group)

    def taken(self, p: Any, saved: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter's state, from what was saved; BadInput where it is another's."""
        raise NotImplementedError

    @classmethod
    def rehearsal(cls) -> tuple[Any, list[Any]]:
        """A small model, and batches of (numbers, wanted) for its squared error, for the checks."""
        made = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn = torch.nn
            model = nn.Sequential(nn.Linear(24, 33), nn.Tanh(), nn.LayerNorm(33), nn.Linear(33, 5))
        inputs = torch.randn(12, 40, 24, generator=made)
        target = torch.tanh(inputs @ torch.randn(24, 5, generator=made) / 3)
        return model, list(zip(inputs, target, strict=True))


def gradient_of(p: Any, maximize: bool = False) -> Any:
    """A parameter's gradient, dense and as the updates read it."""
    g = p.grad
    if g.is_sparse or g.layout is not torch.strided:
        raise BadInput("gradient", "a sparse one", "a dense one (sparse=False in the embedding)")
    return -g if maximize else g


def checked(**limits: tuple[Any, bool, str]) -> None:
    """BadInput for the first that is not as it must be: name = (value, whether it is fine, what is wanted)."""
    for name, (value, fine, wanted) in limits.items():
        if not fine:
            raise BadInput(name, value, wanted)


def number(x: Any) -> float:
    """A learning rate or beta, which torch also takes as a tensor."""
    return float(x)
