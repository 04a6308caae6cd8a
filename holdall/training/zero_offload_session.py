"""A run whose weights are on the device and whose update is done in host memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.training.base import Run, Trainee
from holdall.training.zero_offload_grads import Gradients
from holdall.training.zero_offload_host import Cut, Host
from holdall.training.zero_offload_link import Device
from holdall.training.zero_offload_weights import Weights

if TYPE_CHECKING:
    from holdall.training.zero_offload import ZeROOffload

torch = lazy("torch", extra="training")
_GROW = 2000  # good steps after which the scale of the loss doubles


class Offloaded(Trainee):
    """What ZeRO-Offload opened. steps: updates; skipped ones are not counted. pending: updates that the weights on the
    device do not have yet, 1 from step `delay` on. device: the account of its bytes."""

    def __init__(self, recipe: ZeROOffload, run: Run, device: Device, cut: Cut, params: list[Any], wire: Any):
        self.recipe, self.run, self.model, self.device = recipe, run, run.model, device
        self._params, self._wire, self.scale = params, wire, recipe.scale or 1.0
        homes = {id(p): g for g in run.optimizer.param_groups for p in g["params"]}
        self._homes = [homes[id(p)] for p in params]
        kind = torch.float32 if recipe.accumulate > 1 else getattr(torch, recipe.weights)
        late = recipe.delay is not None
        self._host = Host(cut, kind, 2 if late else 1, params[0].device.type == "cuda")
        self._host.take(params, [run.optimizer.state.get(p, {}) for p in params])
        run.optimizer.state.clear()
        ours = {id(p) for p in params}
        frozen = [p for p in run.model.parameters() if id(p) not in ours and p.is_floating_point()]
        self._weights = Weights(recipe, self._host, device, params, frozen, wire)
        self._grads = Gradients(recipe, self._host, device, self._weights.vector, wire)
        self._told = {"steps": 0, "overflows": 0}
        self._good, self._open = 0, True
        self.optimizer = StandIn(self)
        self._handles = [p.register_post_accumulate_grad_hook(self._hook(n)) for n, p in enumerate(params)]

    @property
    def steps(self) -> int:
        return self._told["steps"]

    @property
    def pending(self) -> int:
        return int(self._open and self._weights.pending is not None)

    def watch(self) -> Any:
        """A context for a forward pass of one's own: what autograd saves in it is on the device's account."""
        return self.device.saving(self._weights.storages)

    def step(self, x: Any) -> float:
        from holdall.parts.losses import default_loss

        self._checked()
        try:
            if self._weights.unsent:
                self._weights.send()
            with self.watch():
                loss = (self.run.loss or default_loss)(self.model, self._cast(x))
                scaled = loss * (self.scale / self.recipe.accumulate)
            self._grads.inside = True
            scaled.backward()
            self._passed()
        except BaseException:
            self._dropped()
            raise
        if self._grads.micro == self.recipe.accumulate:
            self.finish()
        return float(loss.detach())

    def finish(self) -> None:
        """The step itself. In a loop of one's own `optimizer.step()` is this, after `accumulate` backward passes."""
        self._checked()
        try:
            if self._grads.micro < self.recipe.accumulate:
                self._passed()
            self._stepped()
        except BaseException:
            self._dropped()
            raise

    def traffic(self) -> Mapping[str, float]:
        self._checked()
        told: dict[str, float] = {**self._told, **self._grads.told, **self._weights.told}
        for way, link in (("down", self._grads.link), ("up", self._weights.link)):
            told |= {f"{way}_bytes": link.nbytes, f"{way}_copies": link.copies, f"{way}_seconds": link.busy}
        told["host_bytes"] = self._host.nbytes + self._weights.stage.nbytes
        return {**told, "device_peak_bytes": self.device.peak}

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for handle in self._handles:
            handle.remove()
        try:
            self._weights.land()
            self._weights.returned()
            self.run.optimizer.state.update(self._weights.states())
        finally:
            self._grads.link.close()
            self._weights.close()
            if self._wire is not None:
                self._wire.close()
            del self._host, self._weights, self._grads  # who keeps a closed session keeps no memory with it

    def states(self) -> dict[str, Any]:
        self._checked()
        self._weights.land()
        self.run.optimizer.state.update(self._weights.states())
        try:
            return self.run.optimizer.state_dict()
        finally:
            self.run.optimizer.state.clear()

    def load(self, states: Mapping[str, Any]) -> None:
        self._checked()
        self._weights.land()
        self.run.optimizer.load_state_dict(states)
        held = self._host.p.clone()  # masters stay: weights on the device may have fewer bits
        self._host.take(self._params, [self.run.optimizer.state.get(p, {}) for p in self._params])
        self._host.p.copy_(held)
        self.run.optimizer.state.clear()

    def _checked(self) -> None:
        if not self._open:
            raise BadInput("session", "closed", "one that is open")

    def _cast(self, x: Any) -> Any:
        """Inputs in the type of the weights; targets stay."""
        if isinstance(x, tuple | list):
            return (self._cast(x[0]), *x[1:])
        kind = self._weights.vector.dtype
        return x.to(kind) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    def _hook(self, n: int) -> Any:
        return lambda p: self._grads.arrived(n, p)

    def _passed(self) -> None:
        self._grads.inside = False
        self._grads.done()

    def _stepped(self) -> None:
        """Norm and overflow are of all gradients of all owners, and are known before anything is changed."""
        total = torch.tensor([self._host.squares(self._grads.into, 1 / self.scale)], dtype=torch.float64)
        if self._wire is not None:
            self._wire.sum(total)
        came = self._grads.next()
        if not torch.isfinite(total).item():
            if not self.recipe.scale:
                raise BadInput(
                    "gradients", "infinite or NaN", "finite ones, or a `scale` that may be lowered"
                )
            self.scale, self._good = self.scale / 2, 0
            self._told["overflows"] += 1
            return
        factor = 1 / self.scale
        if self.recipe.clip:
            factor *= min(1.0, self.recipe.clip / (float(total.sqrt()) + 1e-6))
        self._good += 1
        if self.recipe.scale and self._good % _GROW == 0:
            self.scale *= 2
        self._told["steps"] += 1
        self._apply(came, factor)

    def _apply(self, came: set[int], factor: float) -> None:
        from holdall.training.adam_kernel import Hyper

        hypers: list[Any] = [None] * len(self._params)
        for n in came:
            self._host.t[n] += 1
            hypers[n] = Hyper.of(self._homes[n], self._host.t[n])
        which = self._grads.into
        if self.recipe.delay is not None and self._told["steps"] >= self.recipe.delay:
            self._grads.into = 1 - which  # the other set is read while this step's successor fills the next
            self._weights.apply_late(which, hypers, factor)
        else:
            self._weights.apply(which, hypers, factor)

    def _dropped(self) -> None:
        self._grads.drop()
        for p in self._params:
            p.grad = None


class StandIn:
    """In the optimizer's place in a loop of one's own."""

    def __init__(self, trainee: Offloaded):
        self._trainee = trainee

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._trainee.run.optimizer.param_groups

    def step(self) -> None:
        self._trainee.finish()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients went to host memory as they came."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW tells it: whole tensors, in host memory; with several owners all have to ask."""
        return self._trainee.states()

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        self._trainee.load(states)
