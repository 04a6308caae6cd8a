"""The contract of the room: a codec whose thing is a `Model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from holdall.budget import Budget
from holdall.dropins import hub
from holdall.kinds import Codec, Spend
from holdall.places import is_file
from holdall.weights.model import Model

if TYPE_CHECKING:
    import torch

    from holdall.packed import Packed
    from holdall.weights.packed_linear import Held

_FORMATS = (".gguf", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class WeightCodec(Codec):
    """Packs a model, tokenizer and config included, into one file.

    Budgets count the whole file: embeddings, tokenizer and header too. A share is of the bytes that the model's
    tensors have as they were given (`Model.nbytes`); bits are per number, over all of its tensors.
    """

    room: ClassVar[str] = "weights"
    tries: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)  # knobs that `auto` and `holdall plan` try
    trains: ClassVar[bool] = False  # takes minutes to hours: tried where the user allows it

    def open(self, packed: Packed, memory: Spend = None) -> torch.nn.Module:
        """A running transformers module. memory: what the weights may take; None for all that was packed.

        Methods that cannot keep weights packed decode them all, and take the memory of the original.
        """
        shell, held = self.held(packed, memory)
        if not held:
            return shell.build()
        from holdall.weights.packed_linear import install

        return install(shell, held)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        """(the tensors that are plain, and the files; the matrices that stay packed, by name)."""
        return self.decode(packed), {}

    @classmethod
    def stays_packed(cls) -> bool:
        return cls.held is not WeightCodec.held

    @staticmethod
    def allowed(model: Model, budget: Spend) -> int | None:
        """The budget in bytes of the file."""
        asked = Budget.parse(budget)
        return None if asked is None else asked.limit(model.nbytes, model.elements)

    @classmethod
    def sniff(cls, url: str, head: bytes) -> bool:
        if head[:4] == b"GGUF" or url.lower().endswith(_FORMATS):
            return True
        return url in hub.short_names() or is_file(f"{url.rstrip('/')}/config.json")

    @classmethod
    def read_input(cls, url: str) -> Model:
        return Model.read(url)

    @classmethod
    def with_text(cls, x: Model, text: str) -> Model:
        if all(f.name != "windows" for f in fields(cls)):  # of calibration text: who calibrates has this knob
            return cast(Model, super().with_text(x, text))
        return replace(x, calibration=text)

    @classmethod
    def write_output(cls, x: Any, url: str) -> None:
        x.write(url)

    def restore(self, packed: Packed, to: str, form: str | None = None) -> None:
        if not to.lower().endswith(".gguf"):
            return super().restore(packed, to, form)
        from holdall.weights.gguf_file import write

        write(*self.held(packed), to, form)
        return None
