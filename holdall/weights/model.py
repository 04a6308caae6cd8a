"""Model: what the weights room holds. Tensors, the files beside them, and how to make them run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from holdall.dropins import hub, safetensors
from holdall.dropins.tokenizer import Tokenizer, json_file
from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.places import is_folder

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = lazy("torch", extra="weights")
    transformers = lazy("transformers", extra="weights")


_UNSET = -77  # no rotary frequency, position or scale has this value


@dataclass
class Model:
    """A model in memory.

    state: tensors by transformers' names; a head that is tied to the embeddings is there once, as embeddings.
    files: config.json, tokenizer.json and their like, as bytes, whatever there is.
    calibration: text to calibrate on; None is the default text (`weights.texts`).
    moments: second moments of matrices' inputs [I, I], by name, where they were measured (`weights.inputs`).
    """

    state: dict[str, torch.Tensor]
    files: dict[str, bytes] = field(default_factory=dict)
    name: str = "model"
    calibration: str | None = None
    moments: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, where: str) -> Self:
        """From a short name (smollm2, gemma3-270m, minilm), .gguf, .safetensors, .hold or HF folder."""
        if where in hub.short_names():
            return cls._named(hub.installed(where), where)
        return cls._named(where, where.rstrip("/").rpartition("/")[2])

    @classmethod
    def _named(cls, where: str, name: str) -> Self:
        hub.present(where)
        lower = where.lower().rstrip("/")
        if lower.endswith(".hold"):
            return cls._unpacked(where)
        if lower.endswith(".gguf"):
            return cls(*_read_gguf(where), name=name)
        if lower.endswith(".safetensors"):
            model = cls(*hub.read_safetensors(where), name=name)
        elif is_folder(where):
            model = cls(*hub.read_folder(where), name=name)
        else:
            raise BadInput("model", where, "a .gguf, .safetensors or .hold file, or a Hugging Face folder")
        if "config.json" in model.files:
            model._take_transformers_names()
        return model

    @classmethod
    def _unpacked(cls, where: str) -> Self:
        from holdall.verbs import unpack

        found = unpack(where)
        if not isinstance(found, cls):
            raise BadInput("model", where, "a .hold file that holds a model")
        return found

    @property
    def config(self) -> dict[str, Any]:
        if "config.json" not in self.files:
            raise BadInput("model", f"{self.name} without config.json", "one with its config.json beside it")
        return json_file(self.files, "config.json")

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.state.values())

    @property
    def elements(self) -> int:
        return sum(t.numel() for t in self.state.values())

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.files)

    def check_tokens(self, ids: list[int]) -> None:
        """Raise where the tokenizer is another model's: its numbers go beyond the table of embeddings."""
        tables = self.embeddings()
        if tables and ids and max(ids) >= len(self.state[tables[0]]):
            rows = len(self.state[tables[0]])
            raise BadInput("tokenizer", f"token number {max(ids)}", f"one for a model of {rows} tokens")

    def linears(self) -> list[str]:
        """Names of the matrices inside the blocks: no embeddings, no head, no norms."""
        if "config.json" not in self.files:  # a lone safetensors file: its names must do
            return [n for n, t in self.state.items() if _looks_linear(n, t)]
        skeleton = self.skeleton()
        inside = {
            f"{name}.weight"
            for name, module in skeleton.named_modules()
            if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
        }
        return [n for n in self.state if n in inside]

    def embeddings(self) -> list[str]:
        """Names of the embedding tables, the largest first (the token table, which a head may share)."""
        if "config.json" not in self.files:
            found = [
                n for n, t in self.state.items() if t.ndim == 2 and ("embed" in n or "wte" in n or "wpe" in n)
            ]
        else:
            tables = {
                f"{name}.weight"
                for name, module in self.skeleton().named_modules()
                if isinstance(module, torch.nn.Embedding)
            }
            found = [n for n in self.state if n in tables]
        return sorted(found, key=lambda n: -self.state[n].numel())

    def skeleton(self, device: str = "meta") -> transformers.PreTrainedModel:
        """The transformers model without any weights (on the meta device)."""
        with torch.device(device):
            made: Any = _model_class(self.config)
            return made._from_config(self._parsed(), dtype=torch.float32)

    def build(self, dtype: torch.dtype | None = None) -> transformers.PreTrainedModel:
        """A running transformers model in eval mode that shares its weights with `state`.

        dtype: of the weights, None for float32. Tensors that have it already are not copied.
        """
        model: Any = self.skeleton()
        wanted = dtype or torch.float32
        ready = {n: t.to(wanted) if t.is_floating_point() else t for n, t in self.state.items()}
        fill(model, ready, self.name)
        return model.to(wanted) if wanted is not torch.float32 else model

    def write(self, where: str) -> None:
        """To a .safetensors file (the other files ride in its header), a .gguf or a new HF folder; atomically."""
        if where.lower().endswith((".hold", ".bin", ".pt")):
            raise BadInput("output", where, "a .safetensors or .gguf file, or a new folder")
        if where.lower().endswith(".gguf"):
            from holdall.weights.gguf_file import write

            write(self, {}, where)
        elif where.lower().endswith(".safetensors"):
            safetensors.write(self.state, where, self.files)
        else:
            hub.write_folder(self.state, where, self.files)

    def _parsed(self) -> transformers.PretrainedConfig:
        told = dict(self.config)
        kind = told.pop("model_type", None)
        if kind not in transformers.CONFIG_MAPPING:
            raise BadInput("model type", str(kind), "one that the installed transformers knows")
        try:
            known: Any = transformers.CONFIG_MAPPING[kind]
            return known.from_dict(told)
        except (ValueError, TypeError, KeyError) as fault:
            raise CorruptArtefact("config.json", str(fault)[:200]) from fault

    def _take_transformers_names(self) -> None:
        """Files of base models lack, or have, the prefix of the class that their config names."""
        skeleton = self.skeleton()
        known, prefix = set(skeleton.state_dict()), skeleton.base_model_prefix + "."
        renamed = {}
        for name, tensor in self.state.items():
            options = (name, prefix + name, name.removeprefix(prefix))
            renamed[next((o for o in options if o in known), name)] = tensor
        for twin, kept in tied(skeleton).items():
            if twin in renamed and kept in renamed:
                del renamed[twin]
        self.state = renamed


def tied(model: torch.nn.Module) -> dict[str, str]:
    """Weights that are others under a second name: {"lm_head.weight": "model.embed_tokens.weight"}."""
    first: dict[int, str] = {}
    twins = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name:
            twins[name] = kept
    return twins


def fill(model: transformers.PreTrainedModel, state: dict[str, torch.Tensor], name: str = "model") -> None:
    """Put `state` into a model made on the meta device, without copies; compute what no file stores."""
    model.tie_weights()
    twins = tied(model)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    lost = [n for n in missing if n not in twins]
    if lost or [n for n in unexpected if not n.endswith("position_ids")]:
        raise CorruptArtefact(
            name, f"its tensors do not match its config (missing {lost[:3]}, unknown {unexpected[:3]})"
        )
    model.tie_weights()
    for owner in model.modules():
        if any(b is not None and b.is_meta for b in owner._buffers.values()):
            _fill_buffers(model, owner)
    model.requires_grad_(False)
    model.eval()


def _fill_buffers(model: transformers.PreTrainedModel, owner: torch.nn.Module) -> None:
    """Buffers such as rotary frequencies: transformers' own initialiser computes them."""
    unset = {k: b for k, b in owner._buffers.items() if b is not None and b.is_meta}
    for key, buffer in unset.items():
        owner._buffers[key] = torch.full_like(buffer, _UNSET, device="cpu")
    for parameter in owner._parameters.values():
        if parameter is not None:
            setattr(parameter, "_is_hf_initialized", True)  # noqa: B010 (the initialiser leaves these alone)
    model._init_weights(owner)
    for key, buffer in ((k, owner.get_buffer(k)) for k in unset):
        if buffer.numel() and bool((buffer == _UNSET).all()):
            raise BadInput("model", f"{type(owner).__name__}.{key}", "buffers that transformers can compute")


def _model_class(config: dict[str, Any]) -> Any:
    names = config.get("architectures") or []
    found = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    if found is None or not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise BadInput("config.json", f"architectures {names}", "a model class of the installed transformers")
    return found


def _looks_linear(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point() and any(part.isdigit() for part in name.split("."))


def _read_gguf(where: str) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    from holdall.dropins import gguf_models
    from holdall.dropins.gguf import GGUF

    with GGUF.open(where) as gguf:
        return gguf_models.state(gguf, gguf_models.config(gguf)), gguf_models.files(gguf)
