"""Documents that are read once and asked together, in any order, as often as you like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdall.budget import Budget
from holdall.errors import BadInput, CorruptArtefact
from holdall.kinds import Codec, Spend
from holdall.kv.contexts import Contexts, cache_of
from holdall.kv.contexts_file import Piece, listed, read, row, width, write
from holdall.kv.documents import Documents, digest
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="kv")

_GRID = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
Question = tuple[
    Contexts, Sequence[int], Sequence[int]
]  # documents, ids of the question, ids of the right answer


@dataclass(frozen=True, kw_only=True)
class APE(Codec):
    """Reads documents once, keeps what the model remembers of each on disk, and answers over any of them at once.

    Each document is read alone, behind one shared prefix and at the same positions, so documents can be joined in
    any order, and together be longer than the model's window. A query attends to them at a temperature and a scale
    that make up for contexts that never saw each other. Poor where an answer needs one document read in the light of
    another; documents far longer than the query's own window do not fit at all.

    Shapes: keys [L, H, T, D], values [L, H, T, E] of each document; out of attention [B, H, N, E].
    Cost: encoding is the model over each document, once. A query's first token takes the model over the query, and
    2 L H (D + E) multiplications for each of its tokens and each token of context. On disk 2 L H (D + E) bytes a token.
    Knobs:
        temperature: T, divides the scores of the contexts (paper: searched for each task; released code 1.0; here 0.8,
            the best of 1.0, 0.9, 0.8 for one, three and ten documents and SmolLM2-135M)
        scale: s, of the logarithm of the contexts' total weight (paper: searched; released code 1.0)
        convention: what multiplies that logarithm; "paper": s, as its pseudocode has it; "code": s T, as its code
        prefix: what all documents stand behind: "chat", the chat header (two line ends without one); "none"; a text
    Differs from the paper: numbers are stored in 16 bits, or 32 where the model computes so and the budget allows;
    the merge of both parts is one softmax in fp32 with the contexts' scores shifted, which is the same number. T and s
    come from `tuned`, in the paper's greedy order. Contexts are encoded one at a time, so there is no padding to drop.
    Example:
        >>> from holdall.kv import APE
        >>> from holdall.kv.contexts_quality import specimens
        >>> contexts = APE(temperature=0.9).decode(APE().encode(specimens()["three"]))
        >>> contexts.tokens, contexts.start  # a prefix of 4 and documents of 7, 5 and 9
        (25, 13)

    Paper: 046, Yang et al., APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding
    Test: tests/kv/test_ape.py
    """

    name: ClassVar[str] = "ape"
    room: ClassVar[str] = "kv"
    measured_by: ClassVar[str] = "contexts_quality"
    paper: ClassVar[Paper] = Paper(
        46,
        "APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding",
        "Yang, Chen, Chen, ICLR 2025",
        "https://arxiv.org/abs/2502.05431",
    )
    skips: ClassVar[dict[str, str]] = {
        "check_beats_the_floors": "no floor stores contexts; plain parallel encoding is its own T = s = 1, in its tests"
    }

    temperature: float = knob(0.8, "T, divides the scores of the contexts", paper="searched", other=0.9)
    scale: float = knob(1.0, "s, of the logarithm of the contexts' weight", paper="searched", other=0.8)
    convention: str = knob(
        "paper", 'what scales it: "paper", s; "code", s T', other="code", at={"temperature": 0.8}
    )
    prefix: str = knob("chat", 'before all documents: "chat", "none" or a text', other="none")

    def __post_init__(self) -> None:
        for name in ("temperature", "scale"):
            if not 0 < getattr(self, name) <= 2:
                raise BadInput(
                    name, getattr(self, name), "a number above 0 and at most 2 (below 1 as a rule)"
                )
        if self.convention not in ("paper", "code"):
            raise BadInput("convention", self.convention, '"paper" or "code"')

    @property
    def power(self) -> float:
        """alpha: what the contexts' LSE is multiplied by."""
        return self.scale * (self.temperature if self.convention == "code" else 1.0)

    def encode(self, x: Documents, budget: Spend = None, *, to: str | None = None) -> Packed:
        """Read the documents; what `x.stored` has of the same model and prefix is copied, not read again.

        budget: of the whole file; a share is of the keys and values as the model computes them. None: 16 bits a
        number; 32, of a model that computes in float32, where the budget has room for them.
        """
        empty = [name for name, ids in x.texts.items() if not len(ids)]
        if empty:
            raise BadInput("document", f"{empty[0]!r} without a word", "some text")
        prefix = x.prefix(self.prefix)
        old, known = _held(x, prefix)
        there = {r["digest"] for r in known}
        fresh = {digest(ids): ids for ids in x.texts.values() if digest(ids) not in there}
        pieces = x.encoded(prefix, fresh.values())
        if old is None:
            first = next(pieces)
            pieces = chain([first], pieces)
        else:
            c = read(old, old.meta["contexts"]["prefix"], listed(old)[3], "prefix")
            first, pieces = (
                (c.ids.tolist(), c.keys, c.values),
                islice(pieces, 1, None),
            )  # read only if a document is
        rows = [r for r in known if r["name"] not in x.texts]
        rows += [row(name, digest(ids), len(ids)) for name, ids in x.texts.items()]
        tokens = len(prefix) + sum({r["digest"]: r["tokens"] for r in rows}.values())
        limit = _limit(budget, first, tokens)
        dtype = listed(old)[3] if old is not None else width(first, tokens, len(rows), limit)
        start = row("prefix", digest(prefix), len(prefix))
        told = {"model": x.model, "prefix": start, "documents": rows, "dtype": dtype}
        return write({"room": "kv", "method": self.to_dict(), "contexts": told}, pieces, old, limit, to)

    def decode(self, packed: Packed) -> Contexts:
        """The contexts, in memory, at this recipe's temperature and scale."""
        model, start, rows, dtype = listed(packed)
        prefix = read(packed, start, dtype, "prefix")
        found = {r["name"]: read(packed, r, dtype, f"d/{r['digest']}") for r in rows}
        like = prefix.keys.shape[:2], prefix.keys.shape[3], prefix.values.shape[3]
        for c in found.values():
            if (c.keys.shape[:2], c.keys.shape[3], c.values.shape[3]) != like:
                raise CorruptArtefact("the contexts", f"{c.name} is of another shape than the prefix")
        return Contexts(
            model=model, prefix=prefix, documents=found, temperature=self.temperature, power=self.power
        )

    def restore(self, packed: Packed, to: str, form: str | None = None) -> None:
        wanted = "`holdall run MODEL --contexts FILE`: keys and values are of use to their model only"
        raise BadInput("unpack", "a file of contexts", wanted)

    @classmethod
    def read_input(cls, url: str) -> Documents:
        raise BadInput("pack", url, "`holdall cache add`, which takes the model that is to read it")

    def tuned(self, net: Any, held_out: Sequence[Question], grid: Sequence[float] = _GRID) -> Self:
        """The temperature, and then the scale, under which the model finds the answers likeliest.

        held_out: for each question the documents, the ids that are asked, and the ids of the right answer.
        """
        best = self.but(scale=1.0)
        for name in ("temperature", "scale"):
            tried = [best.but(**{name: value}) for value in grid]
            losses = [sum(answer_loss(net, method, q) for q in held_out) for method in tried]
            best = tried[losses.index(min(losses))]
        return best


def _held(x: Documents, prefix: Sequence[int]) -> tuple[Packed | None, list[dict[str, Any]]]:
    """What is there already, if it is of this model and prefix."""
    if x.stored is None:
        return None, []
    model, start, rows, _ = listed(x.stored)
    if model != x.model:
        raise BadInput("contexts", f"a file of another model ({model})", f"one of {x.model}, or a new file")
    if start["digest"] != digest(prefix):
        raise BadInput(
            "contexts", "a file with another prefix", "the prefix that it was begun with, or a new file"
        )
    return x.stored, rows


def answer_loss(net: Any, method: APE, question: Question) -> float:
    """Negative log-likelihood of the answer, mean of its tokens."""
    contexts, asked, answer = question
    layers = contexts.layers(dtype=net.dtype)
    cache = cache_of([x.but(temperature=method.temperature, power=method.power) for x in layers])
    with torch.inference_mode():
        ids = torch.tensor([[*asked, *answer]])
        logits = net(ids, past_key_values=cache).logits[0, len(asked) - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(list(answer))))


def _limit(budget: Spend, piece: Piece, tokens: int) -> int | None:
    """The budget in bytes of the file."""
    asked = Budget.parse(budget)
    if asked is None:
        return None
    numbers = tokens * sum(t.shape[0] * t.shape[1] * t.shape[3] for t in piece[1:])
    return asked.limit(numbers * piece[1].element_size(), numbers)
