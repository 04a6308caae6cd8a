"""Methods beside each other: arms cost only what was asked for, and one that cannot hold a budget stops nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kv.reader import write_reader  # noqa: E402

from holdall import BadInput, BudgetError  # noqa: E402
from holdall.dropins.transformers import Cache  # noqa: E402
from holdall.kv import (  # noqa: E402
    EMS,
    H2O,
    KVMerger,
    KVSelector,
    MiKV,
    PrefixKV,
    Random,
    Recent,
    SnapKV,
    ZipCache,
)
from holdall.kv import race as race_module  # noqa: E402
from holdall.kv.asking import ARMS, Asking, Subjects, read, recall  # noqa: E402
from holdall.kv.needles import Haystack, haystack  # noqa: E402
from holdall.kv.race import Furthest, asked_for, compare, entrants, listed  # noqa: E402
from holdall.weights.model import Model  # noqa: E402
from holdall.weights.texts import held_out_text  # noqa: E402

TOKENS = 640
TWO: Subjects = {"lot": (Random(), "30%"), "late": (Recent(), "30%")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_reader(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture(scope="module")
def net(model: str) -> Any:
    return Model.read(model).build()


@pytest.fixture(scope="module")
def hay(model: str) -> Haystack:
    return haystack(Model.read(model).tokenizer(), held_out_text(), TOKENS, seed=2)


class Counted:
    """A model that counts its forward passes."""

    def __init__(self, net: Any):
        self.net, self.passes = net, 0

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.passes += 1
        return self.net(*args, **more)


def passes(arms: tuple[str, ...], first: int = 0) -> int:
    """What those arms need over two subjects and the whole cache."""
    text, asked, subjects = 2, 10, 3
    count = text + first * (text + subjects)
    count += asked * (1 + subjects) if "needle" in arms else 0
    if "recall" in arms:  # the whole cache's late answer is the one in the window, where that was asked for
        count += asked * (subjects - ("needle" in arms)) + 4 * subjects
    return count + (subjects if "perplexity" in arms else 0)


@pytest.mark.parametrize(
    "arms", [(), *((a,) for a in ARMS), ("needle", "recall"), ("recall", "perplexity"), ARMS]
)
def test_what_is_not_asked_for_costs_nothing_and_the_rest_is_the_same(
    net: Any, hay: Haystack, arms: tuple[str, ...]
) -> None:
    counted = Counted(net)
    rows = recall(counted, hay, TWO, Recent(), arms=arms)
    assert counted.passes == passes(arms)
    every = recall(net, hay, TWO, Recent())
    figures = {"needle": ("outside", "recall", "greedy"), "recall": ("recall_late", "greedy_late", "copy")}
    figures["perplexity"] = ("nll_after",)
    for name in ("lot", "late"):
        wanted = {"bytes", "entries", *(f for arm in arms for f in figures[arm])}
        assert (
            rows[name] == {k: v for k, v in every[name].items() if k in wanted} and set(rows[name]) == wanted
        )
    assert set(rows["full"]) == set(rows["lot"])


def test_every_question_before_the_text_reads_it_anew(net: Any, hay: Haystack) -> None:
    counted = Counted(net)
    asked = Asking(counted, hay, dict(TWO), Recent(), first=2, arms=("perplexity",))
    assert len(list(asked.run())) == asked.steps == 4
    assert counted.passes == passes(("perplexity",), first=2)
    assert len(asked.rows["lot"]["recall_first"]) == 2


@pytest.mark.parametrize("budget", ["0.5%", "0.1bit", 500])
@pytest.mark.parametrize(
    "method", [SnapKV(), EMS(), KVMerger(), PrefixKV(), MiKV(), ZipCache(), Recent()], ids=lambda m: m.name
)
def test_the_least_that_is_told_can_be_held_and_hardly_less(
    net: Any, hay: Haystack, method: KVSelector, budget: str | int
) -> None:
    subjects: Subjects = {"mine": (method, budget), "lot": (Random(), "30%")}
    asked = Asking(net, hay, dict(subjects), method, arms=("perplexity",), refused={})
    for _ in asked.run():
        pass
    assert set(asked.rows) == {"full", "lot"} and "nll_after" in asked.rows["lot"]
    assert asked.refused is not None and set(asked.refused) == {"mine"}
    least = asked.refused["mine"].least
    base = Cache(method)
    read(net, base, hay.context)
    assert 0 < base.compressed(method, least).nbytes < base.nbytes
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", str(least)).groups()  # type: ignore[union-attr]
    less = int(least) - 8 if not unit else f"{float(number) - (0.2 if unit == '%' else 0.02):.3f}{unit}"
    with pytest.raises(BudgetError):
        base.compressed(method, less)
    with pytest.raises(BudgetError):
        recall(net, hay, subjects, method)


class Short(Recent):
    """Cannot hold more than the text."""

    name = "short"

    def select(self, x: Any, budget: Any = None) -> Any:
        if x.count > TOKENS:
            raise BudgetError(1, 2)
        return super().select(x, budget)


def test_who_holds_the_text_but_no_question_more_has_no_row(net: Any, hay: Haystack) -> None:
    asked = Asking(net, hay, {"short": (Short(), "30%"), **TWO}, Recent(), refused={})
    assert len(list(asked.run())) == asked.steps
    assert list(asked.rows) == ["lot", "late", "full"] and set(asked.refused or {}) == {"short"}
    assert asked.rows["lot"] == recall(net, hay, TWO, Recent())["lot"]


def test_one_reading_serves_whoever_looks_back_furthest() -> None:
    assert Furthest(among=(SnapKV(window=8), Random())).asks(100) == (8, 0.0)
    assert Furthest(among=(EMS(window=4, probes=0.3), SnapKV(window=8))).asks(100) == (8, 0.3)
    assert Furthest(among=(SnapKV(), H2O())).asks(100) == (100, 0.0)


def test_the_room_is_every_selector_but_the_whole_cache(model: str) -> None:
    names = [m.full_name() for m in entrants()[0]]
    assert names[:3] == ["kv.random", "kv.recent", "kv.h2o"]
    others = {"kv.snapkv", "kv.mikv", "kv.zipcache", "kv.ems", "kv.duo", "kv.prefixkv", "kv.kvmerger"}
    assert others == set(names[3:])
    assert all(n in entrants()[1] for n in ("kv.ape", "kv.vattention", "kv.instinfer", "kv.none"))


def test_a_row_for_each_method_and_budget_in_sixteen_bits(model: str) -> None:
    report = compare(
        [MiKV(), Recent(), SnapKV()], ["10%", "50%"], model=model, on="perplexity,needle", quick=True
    )
    names = [f"kv.{n} {b}" for b in ("10%", "50%") for n in ("random", "mikv", "recent", "snapkv")]
    assert list(report.rows) == ["full", *(n for n in names if n != "kv.mikv 10%")]
    assert list(report.provenance["refused"]) == ["kv.mikv 10%"]
    assert "asked 10%; the least that kv.mikv can hold is" in report.provenance["refused"]["kv.mikv 10%"]
    assert report.provenance["dtype"] == "bfloat16" and report.provenance["arms"] == ["needle", "perplexity"]
    assert (
        report.rows["full"]["bytes"] == 2 * 2 * 16 * 2048 * 2
    )  # layers, keys and values, numbers, tokens, bytes
    assert {"recall", "perplexity_ratio"} <= set(report.measures())
    assert not {"recall_late", "copy", "recall_first", "peak_bytes"} & set(report.measures())
    for name, row in report.rows.items():
        share = 1.0 if name == "full" else float(name.split()[1][:-1]) / 100
        assert 0.9 * share <= row["share"] <= share
    with pytest.raises(BudgetError, match=r"kv\.mikv can hold is"):
        compare([MiKV()], ["10%"], model=model, on="perplexity", quick=True)


def test_what_was_read_before_an_interruption_is_reported(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Asking):
        texts = 0

        def run(self) -> Iterator[None]:
            Stopped.texts += 1
            if Stopped.texts == 3:
                raise KeyboardInterrupt
            return super().run()

    monkeypatch.setattr(race_module, "Asking", Stopped)
    report = compare([SnapKV()], ["50%"], model=model, on="perplexity")
    assert report.provenance["interrupted"] and report.provenance["facts"] == 20
    assert report["perplexity"] > 1
    Stopped.texts = 2
    with pytest.raises(KeyboardInterrupt):
        compare([SnapKV()], ["50%"], model=model, on="perplexity")


def test_on_names_arms_and_a_text(tmp_path: Path) -> None:
    text = tmp_path / "a,b.txt"
    text.write_text("Words.")
    plain = tmp_path / "plain"
    plain.write_text("Words.")
    assert asked_for(None, ARMS) == (ARMS, None)
    assert asked_for("perplexity, needle", ARMS) == (("needle", "perplexity"), None)
    assert asked_for(str(text), ARMS) == (ARMS, str(text)), "a comma in a name"
    assert asked_for(f"first,{plain}", ARMS) == (("first",), str(plain))
    for wrong in ("frob", f"{plain},{text.name}", "needle,", "", "no/such", str(tmp_path)):
        with pytest.raises(BadInput):
            asked_for(wrong, ARMS)
    assert listed("5%, 45MB,5%") == ["5%", "45MB"] and listed(None) == []
    for wrong in ("5%,lots", "5%,", ","):
        with pytest.raises(BadInput, match="budget"):
            listed(wrong)
