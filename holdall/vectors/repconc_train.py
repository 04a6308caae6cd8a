"""RepCONC's training: an encoder and its code books together, every code used alike; then the query side alone.

Differs from the paper: negatives are searched anew before every epoch; what ranks held-out queries best is kept, the
start (OPQ behind the encoder as it was) included; lambda is tripled after an epoch in which more than 30 % of the
balanced codes were not the nearest ones; stage 2 has cross-entropy over the current index's best, as stage 1 has.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdall.errors import BadInput
from holdall.parts.transport import entropy, imbalance
from holdall.report import Report, provenance
from holdall.vectors.repconc_cache import Cached, batches, embedded, size
from holdall.vectors.repconc_codes import Balancer, Quantiser
from holdall.vectors.repconc_joint import Joint, Trained
from holdall.vectors.repconc_loss import contrastive, masked, scores
from holdall.vectors.repconc_pairs import Pairs, found, reciprocal
from holdall.vectors.repconc_tables import Tables, learned

if TYPE_CHECKING:
    from holdall.vectors.repconc import RepCONC

_APART = 0.3  # of the balanced codes that are not the nearest: more, and lambda is raised
_RAISED = 3.0


def trained(recipe: RepCONC, encoder: Any, queries: Any, documents: Any, pairs: Any, how: Joint) -> Trained:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        return _Run(recipe, encoder, queries, documents, pairs, how).run()


class _Run:
    def __init__(self, recipe: RepCONC, encoder: Any, queries: Any, documents: Any, pairs: Any, how: Joint):
        both = encoder if isinstance(encoder, tuple | list) else (encoder, encoder)
        if len(both) != 2 or not all(isinstance(e, nn.Module) for e in both):
            raise BadInput(
                "encoder", type(encoder).__name__, "a torch module, or two: for queries and for documents"
            )
        self.asking, self.telling = copy.deepcopy(tuple(both))  # one stays one
        self.recipe, self.how, self.queries, self.documents = recipe, how, queries, documents
        self.metric, self.draw = recipe.metric, torch.Generator().manual_seed(how.seed)
        self.pairs = Pairs(pairs, size(queries), size(documents))
        order = self.pairs.queries[torch.randperm(len(self.pairs.queries), generator=self.draw)]
        apart = int(how.held * len(order))
        self.judging, self.training = order[:apart].sort().values, self.pairs.of(order[apart:])
        self.pull, self.best = how.pull, ("", -1.0)
        self.rows: dict[str, dict[str, float]] = {}
        self.state: list[dict[str, Any]] = []
        start = self._warm()
        self.quantiser = Quantiser(start)
        self.balancer = Balancer(how.smoothing, how.transport, how.room, how.least)

    def _shown(self, encoder: nn.Module, items: Any) -> Tensor:
        x = embedded(encoder, items)
        return nn.functional.normalize(x, dim=-1) if self.metric == "cosine" else x

    def _warm(self) -> Tables:
        x = self._shown(self.telling, self.documents).numpy()
        parts, entries = self.recipe.parts or min(32, x.shape[1]), self.recipe.entries or 256
        if x.shape[1] % parts:
            raise BadInput("parts", parts, f"a divider of the encoder's {x.shape[1]} numbers")
        turned = self.recipe.rotation != "none"
        return learned(x, parts, 1, entries, 20, turned=turned, seed=self.recipe.seed)

    def run(self) -> Trained:
        self._judge("opq", {})
        adam = torch.optim.AdamW(self._groups({*self.asking.parameters(), *self.telling.parameters()}))
        for epoch in range(self.how.epochs):
            self._first(adam, f"joint {epoch + 1}")
        self._restore()
        coding = self.quantiser.tables().entries
        self.asking = copy.deepcopy(self.asking)  # from here on documents stay as they are
        codes = self._codes()
        adam = torch.optim.AdamW(self._groups(set(self.asking.parameters())))
        for epoch in range(self.how.second):
            self._second(adam, codes, f"queries {epoch + 1}")
        self._restore()
        told = provenance(method=self.recipe.to_dict(), training=dataclasses.asdict(self.how))
        report = Report(self.rows, "opq", provenance=told)
        tables = self.quantiser.tables()
        if self.best[0].startswith("queries"):
            tables = dataclasses.replace(tables, coding=coding)
        return Trained(self.recipe, self.asking.eval(), self.telling.eval(), tables, report, self.best[0])

    def _groups(self, encoders: set[nn.Parameter]) -> list[dict[str, Any]]:
        mine = [
            p
            for e in (self.asking, self.telling)
            for p in e.parameters()
            if p in encoders and p.requires_grad
        ]
        groups = [{"params": list(dict.fromkeys(mine)), "lr": self.how.rate}] if mine else []
        return [
            *groups,
            {"params": [self.quantiser.entries], "lr": self.how.entries_rate, "weight_decay": 0.0},
        ]

    def _first(self, adam: torch.optim.Optimizer, name: str) -> None:
        """An epoch of both together."""
        pool, place = self._pool()
        told: list[tuple[float, ...]] = []
        for rows in batches(len(self.training.rows), self.how.batch, self.draw):
            own, answers = self.training.rows[rows].T.contiguous()
            picked = torch.randint(pool.shape[1], (len(rows), self.how.hard), generator=self.draw)
            hard = pool[torch.searchsorted(place, own)].gather(1, picked)
            told.append(self._step(adam, own, torch.cat([answers, hard.flatten()])))
        means = np.mean(told, 0)
        names = ("loss", "apart", "imbalance", "nearest_imbalance")
        self._judge(name, dict(zip(names, map(float, means), strict=True)) | {"pull": self.pull})
        if self.how.balanced and means[1] > _APART:
            self.pull *= _RAISED
            share = f"{means[1]:.0%} of the balanced codes are not the nearest"
            warnings.warn(f"{name}: {share}; lambda is {self.pull:g} from here on", stacklevel=5)

    def _step(self, adam: torch.optim.Optimizer, own: Tensor, documents: Tensor) -> tuple[float, ...]:
        asked = Cached(self.asking, self.queries, own, self.how.chunk)
        told = Cached(self.telling, self.documents, documents, self.how.chunk)
        turned = self.quantiser.rotated(self._unit(told.found))
        nearest = self.quantiser.nearest(turned)
        codes = self.balancer(self.quantiser, turned) if self.how.balanced else nearest
        values = self.quantiser.through(turned, codes)
        score = scores(self.quantiser.rotated(self._unit(asked.found)), values, self.metric)
        mine = torch.arange(len(own))
        out = masked(documents, mine, self.pairs.relevant(own, documents))
        loss = contrastive(score, mine, out, self.how.negatives, self.how.temperature)
        away = (self.quantiser.values(codes) - turned).square().sum(-1).mean()
        adam.zero_grad()
        (loss + self.pull * away).backward()
        asked.back()
        told.back()
        adam.step()
        entries = self.quantiser.entries.shape[1]
        uneven = (float(imbalance(c.T, entries).mean()) for c in (codes, nearest))
        return (float(loss.detach()), float((codes != nearest).float().mean()), *uneven)

    def _unit(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) if self.metric == "cosine" else x

    def _pool(self) -> tuple[Tensor, Tensor]:
        """(the current index's best for each query but its answers [Q, pool], the queries' rows, rising)."""
        rows = self.training.queries
        with torch.no_grad():
            asked = self.quantiser.rotated(self._shown(self.asking, self.queries)[rows])
            values = self.quantiser.values(self._codes())
            return found(asked, values, self.how.pool, self.metric, (self.pairs, rows)), rows

    def _codes(self) -> Tensor:
        return self.quantiser.nearest(self.quantiser.rotated(self._shown(self.telling, self.documents)))

    def _second(self, adam: torch.optim.Optimizer, codes: Tensor, name: str) -> None:
        """An epoch of the query side and the entries."""
        told = []
        for rows in batches(len(self.training.rows), self.how.batch, self.draw):
            own, answers = self.training.rows[rows].T.contiguous()
            order = own.argsort(stable=True)
            own, answers = own[order], answers[order]
            asked = Cached(self.asking, self.queries, own, self.how.chunk)
            turned = self.quantiser.rotated(self._unit(asked.found))
            with torch.no_grad():
                values = self.quantiser.values(codes)
                most = self.how.negatives or self.how.pool
                hard = self._others(turned.detach(), values, most, own)
            near = self.quantiser.values(codes[torch.cat([answers[:, None], hard], 1)])  # [B, 1 + n, D]
            score = torch.einsum("bd,bnd->bn", turned, near)
            score = 2 * score - near.square().sum(-1) if self.metric == "l2" else score
            loss = nn.functional.cross_entropy(score / self.how.temperature, torch.zeros_like(own))
            adam.zero_grad()
            loss.backward()
            asked.back()
            adam.step()
            told.append(float(loss.detach()))
        self._judge(name, {"loss": float(np.mean(told))}, codes)

    def _others(self, turned: Tensor, values: Tensor, most: int, own: Tensor) -> Tensor:
        """What the current index finds best for each query and is no answer."""
        first = own[
            torch.cat([torch.ones(1, dtype=torch.bool), own.diff() > 0])
        ]  # a query may have several pairs
        place = torch.searchsorted(first, own)
        at = torch.zeros(len(first), dtype=torch.long).scatter_(0, place, torch.arange(len(own)))
        return found(turned[at], values, most, self.metric, (self.pairs, first))[place]

    def _judge(self, name: str, row: dict[str, float], codes: Tensor | None = None) -> None:
        codes = self._codes() if codes is None else codes
        rows = self.judging if len(self.judging) else self.training.queries
        with torch.no_grad():
            asked = self.quantiser.rotated(self._shown(self.asking, self.queries)[rows])
            hits = found(asked, self.quantiser.values(codes), 10, self.metric)
        bits = float(entropy(codes.T, self.quantiser.entries.shape[1]).mean())
        value = reciprocal(hits, self.pairs, rows)
        self.rows[name] = {"mrr": value, "bits": bits, **row}
        if value > self.best[1]:
            parts = (self.asking, self.telling, self.quantiser)
            self.best, self.state = (name, value), [copy.deepcopy(p.state_dict()) for p in parts]

    def _restore(self) -> None:
        for part, state in zip((self.asking, self.telling, self.quantiser), self.state, strict=True):
            part.load_state_dict(state)
