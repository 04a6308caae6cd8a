"""Checks for optimizers: torch's contract kept, states that load and go on bit for bit, bytes, odd sizes, live knobs.

Each optimizer gives its own small run (`rehearsal`): a model and batches for its squared error.
"""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

from holdall.errors import BadInput
from holdall.method import fields
from holdall.optional import lazy

torch = lazy("torch", extra="training")
_ODD = ((), (1,), (3,), (63,), (0,), (129,), (2, 3), (7, 37), (5, 128))


def _steps(model: Any, optimizer: Any, batches: Any) -> list[float]:
    losses = []
    for x, wanted in batches:
        loss = torch.nn.functional.mse_loss(model(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _weights(model: Any) -> Any:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def _trained(cls: type[Any], most: int | None = None, **named: Any) -> tuple[Any, Any, list[float]]:
    model, batches = cls.rehearsal()
    optimizer = cls(model.parameters(), **named)
    return model, optimizer, _steps(model, optimizer, batches[:most])


def check_what_is_built_is_torchs(cls: type[Any]) -> None:
    model, _ = cls.rehearsal()
    optimizer = cls(model.parameters(), foreach=None, fused=None)
    assert isinstance(optimizer, torch.optim.Optimizer) and isinstance(optimizer, cls), (
        f"{cls.full_name()} is not torch's"
    )
    signature = inspect.signature(cls.__init__).parameters
    for f in fields(cls):
        assert signature[f.name].default == f.default, f"{cls.full_name()}.{f.name}: its default is another"


def check_training_helps_and_repeats(cls: type[Any]) -> None:
    model, _, losses = _trained(cls)
    assert min(losses[-3:]) < 0.97 * losses[0], (
        f"{cls.full_name()}: losses {losses[0]:.3g} to {losses[-1]:.3g}"
    )
    again, _, _ = _trained(cls)
    assert _weights(model).equal(_weights(again)), f"{cls.full_name()} is not deterministic"


def check_knobs_are_live(cls: type[Any]) -> None:
    plain = _weights(_trained(cls, 4)[0])
    for f in fields(cls):
        changed = _weights(_trained(cls, 4, **{f.name: f.metadata["other"]})[0])
        assert not plain.equal(changed), f"{cls.full_name()}.{f.name} changes nothing"


def check_a_saved_state_goes_on_bit_for_bit(cls: type[Any]) -> None:
    for kind in (torch.float32, torch.bfloat16):
        model, batches = cls.rehearsal()
        model, batches = model.to(kind), [(x.to(kind), y.to(kind)) for x, y in batches]
        optimizer = cls(model.parameters())
        _steps(model, optimizer, batches[:4])
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        told = torch.load(file, weights_only=True)
        other, _ = cls.rehearsal()
        other = other.to(kind)
        fresh = cls(other.parameters())
        other.load_state_dict(told["model"])
        fresh.load_state_dict(told["optimizer"])
        twin = copy.deepcopy((model, optimizer))
        wanted = _steps(model, optimizer, batches[4:8])
        for m, o, how in ((other, fresh, "loaded"), (*twin, "copied")):
            assert _steps(m, o, batches[4:8]) == wanted, (
                f"{cls.full_name()}: {how}, it goes on otherwise ({kind})"
            )
            assert _weights(m).equal(_weights(model)), f"{cls.full_name()}: {how}, weights differ ({kind})"


def check_state_has_no_more_bytes_than_it_says(cls: type[Any]) -> None:
    p = torch.nn.Parameter(torch.randn(256, 300))
    p.grad = torch.randn(256, 300)
    optimizer = cls([p])
    optimizer.step()
    held = sum(t.untyped_storage().nbytes() for t in optimizer.state[p].values() if torch.is_tensor(t))
    assert 0 < held <= cls.most_bytes * p.numel(), (
        f"{cls.full_name()}: {held / p.numel():.3f} bytes a parameter"
    )


def check_states_of_other_shapes_are_refused(cls: type[Any]) -> None:
    a, b = (torch.nn.Parameter(torch.ones(*shape)) for shape in ((4, 40), (40, 5)))
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    one, two = cls([a]), cls([b])
    one.step()
    try:
        two.load_state_dict(one.state_dict())
    except BadInput:
        return
    raise AssertionError(f"{cls.full_name()} takes the state of a parameter of another shape")


def check_odd_sizes_layouts_and_types(cls: type[Any]) -> None:
    made = torch.Generator().manual_seed(1)
    for shape in _ODD:
        for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            start, slope = (torch.randn(shape, generator=made).to(kind) for _ in range(2))
            ways = [start.clone(), start.mT.contiguous().mT if start.dim() == 2 else start.clone()]
            for way in ways:
                p = torch.nn.Parameter(way)
                p.grad = slope.clone()
                optimizer = cls([p], lr=0.1)  # bfloat16 rounds small steps away
                for _ in range(3):
                    optimizer.step()
                assert p.isfinite().all(), f"{cls.full_name()}: {list(shape)} in {kind} became {p}"
                assert not p.numel() or not p.equal(start), (
                    f"{cls.full_name()}: {list(shape)} in {kind} stays"
                )
                assert p.grad.equal(slope), f"{cls.full_name()} changes gradients"
            far = (ways[0] - ways[1]).abs().max().item() if start.numel() else 0
            assert far <= (1e-5 if kind.itemsize > 2 else 2e-2), (
                f"{cls.full_name()}: laid out otherwise, {list(shape)} is {far} away"
            )


def check_zero_none_and_odd_gradients(cls: type[Any]) -> None:
    none, zero, usual, late = (torch.nn.Parameter(torch.ones(40)) for _ in range(4))
    optimizer = cls([none, zero, usual, late], weight_decay=0.0)
    zero.grad, usual.grad = torch.zeros(40), torch.linspace(-1, 1, 40)
    optimizer.step()
    assert none.eq(1).all() and none not in optimizer.state, f"{cls.full_name()} moves what has no gradient"
    assert zero.eq(1).all(), f"{cls.full_name()} moves what has a gradient of zero"
    zero.grad, late.grad = torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40)
    optimizer.step()
    assert not zero.eq(1).all() and not late.eq(1).all(), f"{cls.full_name()}: what starts late never moves"
    usual.grad[3] = float("nan")
    optimizer.step()
    assert usual[3].isnan() and usual[:3].isfinite().all(), (
        f"{cls.full_name()}: a gradient of NaN gave {usual}"
    )


def check_groups_closures_schedules_and_maximize(cls: type[Any]) -> None:
    still, moving, more = (torch.nn.Parameter(torch.ones(30)) for _ in range(3))
    optimizer = cls([{"params": [still], "lr": 0.0}, {"params": [moving]}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1.0, lambda t: float(t < 2)])
    optimizer.add_param_group({"params": [more], "maximize": True, "initial_lr": 0.1})

    def closure() -> Any:
        optimizer.zero_grad()
        loss = sum((p * torch.linspace(0.1, 1, 30)).sum() for p in (still, moving, more))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(2)]
    assert losses[0] != losses[1], f"{cls.full_name()} gives no loss of its closure"
    assert still.eq(1).all(), f"{cls.full_name()}: a rate of 0 moves weights"
    assert moving[-1] < 1 < more[-1], f"{cls.full_name()}: down {moving[-1]}, up {more[-1]}"
    del schedule
    optimizer.param_groups[1]["lr"], before = 0.0, moving.detach().clone()
    optimizer.step(closure)
    assert moving.equal(before), f"{cls.full_name()} does not see a changed rate"


def check_what_it_cannot_do_is_refused(cls: type[Any]) -> None:
    p = torch.nn.Parameter(torch.ones(4))
    acts = [
        lambda: cls([p], lr=-1.0),
        lambda: cls([torch.nn.Parameter(torch.ones(4, dtype=torch.complex64))]),
    ]
    bag = torch.nn.Embedding(9, 4, sparse=True)
    bag(torch.tensor([1])).sum().backward()
    acts.append(cls(bag.parameters()).step)
    for act in acts:
        try:
            act()
        except BadInput:
            continue
        raise AssertionError(f"{cls.full_name()} takes what it cannot do")
