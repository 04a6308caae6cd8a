"""transformers: `DriveCache`, whose context lies on drives that attend (`kv.instinfer`).

    from holdall.dropins.drives import DriveCache
    from holdall.kv import InstInfer
    with DriveCache(InstInfer(), model.config, length=8192) as cache:
        model.generate(**inputs, past_key_values=cache)

The prompt is read as ever, at full precision; each layer's keys and values go to the drives while the next layer
computes, and are then freed here. From the first new token on attention is asked of the drives.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from torch import Tensor

from holdall.dropins.kv_layer import Layer
from holdall.dropins.transformers import Cache
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.kv.drive_model import Task
from holdall.kv.drives import Drives
from holdall.kv.hook import Step
from holdall.kv.instinfer import InstInfer
from holdall.kv.layer import LayerState
from holdall.kv.on_drive import OnDrive


class DriveCache(Cache):
    """One batch of contexts without padding, on drives that are opened when the first prompt comes.

    length: tokens of the longest context. folder: where the drives' files lie (None: the system's temporary folder).
    budget: what the drives may hold in memory. Close it, or use it in `with`.
    """

    def __init__(
        self, method: InstInfer, config: Any, length: int, *, folder: str | None = None, budget: Spend = None
    ):
        super().__init__()
        if not isinstance(method, InstInfer):
            raise BadInput("cache method", repr(method), "InstInfer()")
        told = config.get_text_config()
        heads = getattr(told, "num_key_value_heads", None) or told.num_attention_heads
        dim = getattr(told, "head_dim", None) or told.hidden_size // told.num_attention_heads
        self.runtime, self.spend = method, budget
        self.task = Task(
            layers=told.num_hidden_layers, heads=heads, dim=dim, length=length, folder=folder or ""
        )
        self.drive: Drives | None = None
        self._late: LayerState | None = None  # a layer that was read, and is not on the drive yet

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(Layer(len(self.layers)))
        if self._late is not None:
            self._store(self._late)
        state = self._states[layer_idx]
        if state.entries is None:
            entries = state.append(key_states, value_states)
            self._late = state
            return entries.keys, entries.values
        entries = state.append(key_states, value_states)
        state.step = Step(entries, key_states.shape[2], partial(self._attended, state, key_states.shape[2]))
        return state.step.given()

    def _store(self, state: LayerState) -> None:
        """Send a layer to the drive, without waiting, and free it here."""
        x = state.entries
        assert x is not None
        if self.drive is None:
            task = Task(**{**vars(self.task), "rows": x.shape[0]})
            self.drive = self.runtime.open(task, self.spend)
        self.drive.step((state.layer, None, x.keys.float().numpy(), x.values.float().numpy()))
        empty = x.keys[:, :, :0].clone(), x.values[:, :, :0].clone()
        state.entries = OnDrive(
            keys=empty[0], values=empty[1], seen=x.tokens, layer=state.layer, drive=self.drive
        )
        self._late = None

    def traffic(self) -> dict[str, float]:
        """What the drives counted so far."""
        return {} if self.drive is None else self.drive.traffic()

    def close(self) -> None:
        if self.drive is not None:
            self.drive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
