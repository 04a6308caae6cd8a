"""holdall measure: a whole room and lists of budgets; table, JSON and picture; mistakes are told before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kv.reader import write_reader

from holdall import picture


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_reader(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[picture.Panel]:
    """The panels that are drawn from now on, in a folder of its own."""
    from holdall.kv import race_shown

    found: list[picture.Panel] = []

    def panels(shown: list[picture.Panel], *args: Any, **more: Any) -> None:
        found.extend(shown)
        picture.panels(shown, *args, **more)

    monkeypatch.setattr(race_shown, "panels", panels)
    monkeypatch.chdir(tmp_path)
    return found


def size(png: Path) -> tuple[int, int]:
    """Width and height that the file's header tells."""
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_a_room_is_a_table_and_a_picture(
    call: Callable[..., Any], tiny: str, drawn: list[picture.Panel], tmp_path: Path
) -> None:
    told = call("measure", "kv", "--model", tiny, "--quick", "--budget", "10%,40%", "--on", "perplexity")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert "bfloat16" in lines[0] and lines[1].split() == ["bytes", "share", "perplexity", "ratio"]
    assert lines[3].startswith("full ") and "100.0%" in lines[3]
    every = ("random", "recent", "h2o", "ems", "duo", "kvmerger", "mikv", "prefixkv", "snapkv", "zipcache")
    rows = [line.split()[:2] for line in lines[4:] if line.startswith("kv.")]
    least = [line for line in lines if "the least that" in line]
    assert [line.split("least that ")[1].split()[0] for line in least] == ["kv.mikv", "kv.zipcache"]
    cannot = {("kv.mikv", "10%"), ("kv.zipcache", "10%")}
    pairs = [(f"kv.{name}", budget) for budget in ("10%", "40%") for name in every]
    assert rows == [list(pair) for pair in pairs if pair not in cannot]
    told_beside = told.err.splitlines()
    assert len(told_beside) == 2 and told_beside[1] == "picture: kv.png"
    assert all(
        n in told_beside[0] for n in ("left out", "kv.ape", "kv.vattention", "kv.instinfer", "kv.none")
    )
    assert [(p.title, p.log_y, p.level) for p in drawn] == [("What follows the text", True, 1.0)]
    assert set(drawn[0].lines) == {name for name, _ in pairs}
    assert [len(drawn[0].lines[n]) for n in ("kv.snapkv", "kv.mikv", "kv.random")] == [2, 1, 2]
    wide, high = size(tmp_path / "kv.png")
    assert wide > high > 400


def test_one_method_at_several_budgets(
    call: Callable[..., Any], tiny: str, drawn: list[picture.Panel], tmp_path: Path
) -> None:
    words = ("measure", "kv.snapkv", "--window", "16", "--model", tiny, "--quick", "-b", "5%,20%", "--json")
    told = call(*words, "--png", "mine.png")
    assert told.code == 0 and told.err == "picture: mine.png\n"
    found = json.loads(told.out)
    assert found["method"] == "kv.snapkv" and found["budget"] == "5%,20%" and "recall" not in found
    rows, facts = found["report"]["rows"], found["report"]["provenance"]
    floors = ("kv.random", "kv.recent", "kv.snapkv")
    assert list(rows) == ["full", *(f"{n} {b}" for b in ("5%", "20%") for n in floors)]
    assert facts["method"]["window"] == 16 and facts["dtype"] == "bfloat16" and facts["facts"] == 10
    assert {"recall", "greedy", "recall_late", "copy", "perplexity_ratio", "share"} <= set(rows["full"])
    titles = [p.title for p in drawn]
    assert len(titles) == 4 and titles[0].startswith("Question read before") and "copied" in titles[2]
    one = call("measure", "kv.snapkv", "--model", tiny, "--quick", "-b", "5%", "--on", "recall", "--json")
    flat = json.loads(one.out)
    assert one.err == "" and flat["budget"] == "5%"
    assert list(flat["report"]["rows"]) == ["full", *floors], "a single budget needs no naming"
    assert flat["recall_late"] == flat["report"]["rows"]["kv.snapkv"]["recall_late"] and "recall" not in flat
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.png"]
    assert size(tmp_path / "mine.png")[0] > 1000


def test_an_interruption_prints_what_there_is(
    call: Callable[..., Any], tiny: str, drawn: list[picture.Panel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdall.kv import race

    class Stopped(race.Asking):
        texts = 0

        def run(self) -> Any:
            Stopped.texts += 1
            if Stopped.texts == 2:
                raise KeyboardInterrupt
            return super().run()

    monkeypatch.setattr(race, "Asking", Stopped)
    told = call("measure", "kv.recent", "--model", tiny, "-b", "20%", "--on", "perplexity")
    assert told.code == 130 and "interrupted" in told.one_line()
    assert "in a text of 2,048 tokens" in told.out and "kv.recent" in told.out


def test_without_matplotlib_a_room_is_a_table_and_a_wanted_picture_a_mistake(
    call: Callable[..., Any], tiny: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = call("measure", "kv", "--png", "a.png")
    assert told.code == 2 and "holdall[plot]" in told.one_line()
    told = call("measure", "kv", "--model", tiny, "--quick", "--budget", "30%", "--on", "perplexity")
    assert told.code == 0 and "kv.snapkv" in told.out and not list(tmp_path.iterdir())
    assert told.err.splitlines()[0].startswith("no picture: ") and "holdall[plot]" in told.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["kvv"], "no method"),
        (["logs"], "logs.zstd"),
        (["weights"], "whole rooms: kv"),
        (["kv", "--window", "3"], "--window"),
        (["kv", "book.txt"], "book.txt"),
        (["kv", "--on", "neadle"], "recall"),
        (["kv", "--on", "needle,,recall"], "commas"),
        (["kv", "--on", "needle,/no/such.txt"], "/no/such.txt"),
        (["kv", "--budget", "5%,lots"], "lots"),
        (["kv", "--budget", "5%,"], "budget"),
        (["kv.snapkv", "--budget", "5%;10%"], "5%;10%"),
        (["kv", "--png", "/no/such/folder/a.png"], "folder"),
        (["kv.snapkv", "--png", "."], "folder"),
        (["logs.zstd", "--budget", "1%,2%"], "one budget"),
        (["kv.ape", "--png", "a.png"], "kv.ape"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(call: Callable[..., Any], words: list[str], says: str) -> None:
    told = call("measure", *words)
    assert told.code == 2 and says in told.one_line() and told.out == ""
