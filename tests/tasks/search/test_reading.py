"""Answers are read beside the search: one that a grader hangs on costs its time limit once, and holds up nobody."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from infra.processes.limited import Limited, NoResult
from infra.serving.ledger import Ledger
from tasks.search.reading import GRADERS, Reader


class Grader:
    """Numbers are equal as numbers. A comparison with "hard" gives no result, once `gate` is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.compared: list[tuple[str, str]] = []

    def __call__(self, text: str, reference: str) -> dict[str, Any] | NoResult:
        if not reference:
            return {"prediction": text.removeprefix("it is ") or None}
        self.compared.append((text.removeprefix("it is "), reference))
        if "hard" in (*self.compared[-1],):
            assert self.gate.wait(10)
            return NoResult("time", "over 20 s")
        return {"correct": float(text.removeprefix("it is ")) == float(reference)}


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "k.jsonl") as opened:
        yield opened


def read_all(grader: Grader, ledger: Ledger, answers: list[str]) -> list[str | None]:
    """What a problem's solutions answer, read one after the other."""

    async def reading() -> list[str | None]:
        reader = Reader([cast(Limited, grader)], ledger)
        known, aside = list[str | None](), set[str]()
        for place, each in enumerate(answers):
            known.append(await reader.read(f"q/answer-{place}", f"it is {each}" if each else "", known, aside))
        return known

    return asyncio.run(reading())


def test_equal_answers_are_one_and_equal_texts_are_not_compared(ledger: Ledger) -> None:
    grader = Grader()
    assert read_all(grader, ledger, ["7", "7", "", "7.0", "8", "8"]) == ["7", "7", None, "7", "8", "8"]
    assert grader.compared == [("7.0", "7"), ("8", "7")]


@pytest.mark.parametrize("first", [True, False])
def test_an_answer_whose_comparison_gives_no_result_is_never_compared_again(ledger: Ledger, first: bool) -> None:
    answers = ["hard", "5"] if first else ["5", "hard"]
    grader = Grader()
    assert read_all(grader, ledger, [*answers, "6", "hard", "6.0"]) == [*answers, "6", "hard", "6"]
    assert [each for each in grader.compared if "hard" in each] == [(answers[1], answers[0])]
    after = Grader()  # a search that goes on after a kill has it from the ledger
    assert read_all(after, ledger, [*answers, "6", "hard", "6.0", "9"])[-1] == "9"
    assert after.compared == [("9", "6")]


def test_a_grader_that_hangs_holds_up_neither_the_loop_nor_other_answers(ledger: Ledger) -> None:
    grader = Grader()
    grader.gate.clear()

    async def reading() -> str | None:
        reader = Reader([cast(Limited, grader)] * GRADERS, ledger)
        slow = asyncio.create_task(reader.read("a/answer-1", "it is hard", ["1"], set()))
        while not grader.compared:
            await asyncio.sleep(0.001)
        assert await reader.read("b/answer-1", "it is 2.0", ["2"], set()) == "2"
        assert not slow.done()
        grader.gate.set()
        return await slow

    assert asyncio.run(reading()) == "hard"
