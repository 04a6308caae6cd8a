"""The scores tell a cache that remembers from one that does not, and count the facts that they say they count."""

from __future__ import annotations

import pytest
import torch

from holdall.dropins.transformers import Cache
from holdall.kv import Random, Recent, SnapKV
from holdall.kv.asking import Found, Subjects, copied, read, recall, summary
from holdall.kv.needles import REPEATED, SHOWN, Haystack, frame, haystack
from holdall.weights.model import Model
from holdall.weights.texts import held_out_text


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return Model.read("smollm2")


@pytest.fixture(scope="module")
def hay(smollm2: Model) -> Haystack:
    return haystack(smollm2.tokenizer(), held_out_text(), 640, seed=2)


def test_a_fact_ends_where_its_probe_says(smollm2: Model, hay: Haystack) -> None:
    tok = smollm2.tokenizer()
    ends = [probe.end for probe in hay.probes]
    assert ends == sorted(set(ends))
    for probe in hay.probes:
        fact = tok.decode(probe.stem) + tok.decode([probe.words[probe.right]])
        before, behind = (tok.decode(hay.context[: probe.end - cut]) for cut in (len(probe.stem) + 2, 0))
        assert fact not in before and fact in behind[-len(fact) - 20 :] and behind.endswith(".")


def test_a_question_that_is_asked_first_stands_before_the_same_text(smollm2: Model, hay: Haystack) -> None:
    tok = smollm2.tokenizer()
    head, tail = frame(tok)
    for probe in hay.some(2):
        prompt, question = hay.asked_first(probe), tok.decode(probe.ahead)
        text = hay.context[len(head) :]
        assert question.endswith("?\n\n") and question.strip() in tok.decode(probe.question)
        assert prompt[: len(head)] == head and prompt[-len(tail) :] == tail
        assert prompt[len(head) + len(probe.ahead) : -len(tail)] == text
    assert [hay.probes.index(p) for p in hay.some(4)] == [1, 3, 6, 8]
    assert hay.some(0) == [] and hay.some(10) == hay.probes


def hits(recall: list[float], outside: list[float], **more: object) -> dict[str, object]:
    return {"bytes": 8.0, "recall": recall, "outside": outside, "nll_after": 0.0, **more}


def test_known_and_outside_facts_are_counted_one_by_one() -> None:
    whole = hits([1, 1, 0, 1], [0, 0, 0, 0], recall_late=[1, 0, 0, 0])
    latest = hits([0, 1, 1, 1], [1, 0, 1, 0], recall_late=[0, 1, 1, 1])
    row = summary([{"full": whole, "latest": latest}])["latest"]
    assert row["recall"] == 0.75 and row["recall_known"] == 2 / 3
    assert row["outside"] == 1 and row["recall_outside"] == 0, "the third is outside, but not known"
    assert row["recall_late"] == 0.75 and row["recall_late_known"] == 0, "known as it is asked"
    full = summary([{"full": whole, "latest": latest}])["full"]
    assert full["recall_known"] == 1 and full["outside"] == 0 and "recall_outside" not in full


def test_texts_with_few_known_facts_do_not_weigh_more() -> None:
    many: Found = {"full": hits([1, 1, 1], [0, 0, 0]), "cut": hits([1, 1, 1], [1, 1, 1])}
    one: Found = {"full": hits([1, 0, 0], [0, 0, 0]), "cut": hits([0, 0, 1], [1, 1, 1])}
    row = summary([many, one])["cut"]
    assert row["recall_known"] == row["recall_outside"] == 3 / 4 and row["recall"] == 4 / 6
    assert row["perplexity"] == 1 and row["bytes"] == 8
    none: Found = {"peer": hits([0, 0], [0, 0])}
    assert "recall_known" not in summary([none], whole="peer")["peer"]


def test_a_whole_cache_copies_and_a_random_tenth_only_guesses(smollm2: Model, hay: Haystack) -> None:
    passages = hay.passages()
    joined = ",".join(map(str, hay.context))
    assert len(passages) == 4 and {len(p) for p in passages} == {SHOWN + REPEATED}
    assert all(",".join(map(str, p)) in joined for p in passages)
    net, base = smollm2.build(), Cache(SnapKV())
    read(net, base, hay.context)
    before = base.lengths
    full = copied(net, base, hay)
    assert full == copied(net, base.compressed(SnapKV(), "100%"), hay), "a cache at 100 % is the whole one"
    half, tenth = (copied(net, base.compressed(Random(), share), hay) for share in ("50%", "10%"))
    assert tenth < half < full and tenth < full - 0.3 and full > 0.7
    blank = Cache(SnapKV())
    read(net, blank, hay.context[: hay.header])
    assert copied(net, blank, hay) > 0.1, "a part is guessed without any memory"
    assert base.lengths == before, "the cache stays as it is"


@pytest.mark.slow
def test_the_latest_entries_know_what_lies_in_them_and_no_more(smollm2: Model, hay: Haystack) -> None:
    net = smollm2.build()
    subjects: Subjects = {"whole": (SnapKV(), "100%"), "latest": (Recent(), "30%")}
    rows = recall(net, hay, subjects, SnapKV(), first=1)
    assert rows["whole"] == rows["full"], "a cache at 100 % is the whole one, in every score"
    assert len(rows["full"]["recall_first"]) == 1 and set(rows["full"]["outside"]) == {0}
    for probe, outside in zip(hay.probes, rows["latest"]["outside"], strict=True):
        asked = Cache(SnapKV())
        asked_tokens = len(hay.context) + len(probe.question)
        keys = torch.zeros(1, 1, asked_tokens, 2)
        asked.update(keys, keys, 0)
        kept = asked.compressed(Recent(), "30%").layers[0].state.entries
        assert kept is not None
        held = set(kept.where()[0, 0].tolist())
        assert outside == float(probe.end - 1 not in held), "its last token is there or not"
    row = summary([rows])["latest"]
    inside = [h for h, o in zip(rows["latest"]["recall"], rows["latest"]["outside"], strict=True) if not o]
    assert 5 <= row["outside"] <= 7 and row["recall_outside"] < 0.5 < sum(inside) / len(inside)
