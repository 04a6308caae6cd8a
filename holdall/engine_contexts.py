"""An engine that answers from documents that the model has read before (`kv.ape`); only the question is read now."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from holdall.dropins.identity import identity
from holdall.dropins.tokenizer import Message, json_file
from holdall.engine import Engine
from holdall.engine_plan import Plan
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.memory import release
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.kv.assembled import Assembled
    from holdall.kv.contexts import Contexts
    from holdall.packed import Packed
else:
    torch = lazy("torch", extra="weights")

_ROWS = 256  # query rows whose scores over the contexts stand at a time


@dataclass
class ContextEngine(Engine):
    """Opens a model together with a file of contexts.

        engine = ContextEngine.over("small.hold", "docs.hold")
        print("".join(engine.generate("What do these documents say about whales?")))

    The contexts are held whole, once, however many questions are asked. Contexts of another model are refused.
    """

    layers: Sequence[Assembled] = field(default_factory=list)
    start: int = 0  # the column of a question's first token
    held: int = 0  # tokens of all contexts

    @classmethod
    def over(cls, model: str, contexts: str, memory: Spend = None) -> Self:
        engine = cls.open(model, memory)
        engine.take(contexts_for(model, contexts))
        return engine

    def take(self, contexts: Contexts) -> None:
        """Hold these contexts from now on."""
        dtype = torch.bfloat16 if self.shape.item == 2 else torch.float32
        self.layers = contexts.layers(dtype=dtype)
        self.start, self.held = contexts.start, contexts.tokens
        self.used += sum(x.nbytes for x in self.layers)
        release()

    def ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """The question and what the chat template puts behind it; what it puts before stands before the contexts."""
        from holdall.kv.needles import frame

        if not isinstance(prompt, str):
            raise BadInput("prompt", "a conversation", "one question, as text: the contexts stand before it")
        if not prompt.strip():
            raise BadInput("prompt", "nothing", "a question")
        found = self.tokenizer.encode("\n\n" + prompt.strip()) + frame(self.tokenizer)[1]
        window = json_file(self.source.files, "config.json").get("max_position_embeddings")
        if isinstance(window, int) and self.start + len(found) > window:
            wanted = f"at most {window - self.start}: of {window} positions the contexts take {self.start}"
            raise BadInput("question", f"{len(found)} tokens", wanted)
        return found

    def plan(self, tokens: int, new: int, chunk: int | None = None) -> Plan:
        """The contexts themselves are in `used`; their scores, and one layer of them in fp32, are workspace."""
        plan = super().plan(tokens, new, chunk)
        scores = 12 * self.shape.heads * min(tokens, _ROWS) * (self.held + tokens)
        layer = 8 * self.shape.kv_heads * self.shape.head_dim * self.held
        return dataclasses.replace(plan, workspace=plan.workspace + scores + layer)

    def _leaner(self) -> Any:
        return None

    def _cache(self, tokens: int, most: int) -> Any:
        from holdall.kv.contexts import cache_of

        return cache_of(self.layers)

    def _weigh(self, cache: Any, prompt: int) -> None:
        self.stats.kv_bytes, self.stats.kv_full_bytes = cache.nbytes, cache.full_bytes
        self.stats.context_tokens = self.held


def contexts_for(model: str, path: str) -> Contexts:
    """What that file holds, if that model made it."""
    from holdall.packed import Packed

    with Packed.open(path) as packed:
        method, made = method_of_contexts(packed, path), packed.meta["contexts"]["model"]
        if made != (mine := identity(model)):
            wanted = f"one of {model} ({mine[:8]}): holdall cache add ... --model {model}"
            raise BadInput("contexts", f"{path}, which another model made ({made[:8]})", wanted)
        return method.decode(packed)


def method_of_contexts(packed: Packed, path: str) -> Any:
    """The recipe in a file of contexts; other files are refused."""
    from holdall.kv import APE
    from holdall.kv.contexts_file import listed
    from holdall.verbs import method_of

    method = method_of(packed, path)
    if not isinstance(method, APE):
        raise BadInput(
            "contexts", path, f"a file of `holdall cache add`, not what {method.full_name()} packed"
        )
    listed(packed)
    return method
