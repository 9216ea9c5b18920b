"""What each solution of a tree answers, so that equal answers are equal: read while other trees go on.

A grader compares the answers. It can hang on one, until its time limit: such an answer is set aside at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from infra.processes.limited import Limited, NoResult
from infra.serving.ledger import Ledger

GRADERS = 4
"""Answers that are compared at the same time; a grader's process is started when it is first needed."""


class Reader:
    """Reads answers, and remembers them in a ledger, so that a search that goes on after a kill decides as before."""

    def __init__(self, graders: Sequence[Limited], ledger: Ledger) -> None:
        self._ledger = ledger
        self._free: asyncio.LifoQueue[Limited] = asyncio.LifoQueue()
        for each in graders:
            self._free.put_nowait(each)

    async def read(self, name: str, text: str, known: Sequence[str | None], aside: set[str]) -> str | None:
        """The answer of a solution; one that equals an answer so far is that one. None if the grader finds none.

        Args:
            name: that of the solution, under which its answer is remembered.
            text: all of it.
            known: the answers so far of its problem's solutions.
            aside: answers of the problem that only equal texts agree with. If a comparison gives no result, both sides
                are added, since either may be the cause: no answer costs a time limit twice.
        """
        if name not in self._ledger:
            self._ledger.append(name, await self._found(text, known, aside))
        record = self._ledger[name]
        aside.update(record["aside"])
        answer = record["answer"]
        return None if answer is None else str(answer)

    async def _found(self, text: str, known: Sequence[str | None], aside: set[str]) -> dict[str, object]:
        """What the ledger keeps of an answer."""
        found = await self._graded(text, "")
        answer = None if isinstance(found, NoResult) else " ".join(str(found["prediction"] or "").split()) or None
        if answer is None or answer in known:
            return {"answer": answer, "aside": []}
        for each in dict.fromkeys(known):
            if each is not None and each not in aside:
                found = await self._graded(text, each)
                if isinstance(found, NoResult):
                    return {"answer": answer, "aside": [answer, each]}
                if found["correct"]:
                    return {"answer": each, "aside": []}
        return {"answer": answer, "aside": []}

    async def _graded(self, text: str, reference: str) -> dict[str, object] | NoResult:
        """What a free grader finds, in a thread of its own."""
        grader = await self._free.get()
        try:
            found: dict[str, object] | NoResult = await asyncio.to_thread(grader, text, reference)
        finally:
            self._free.put_nowait(grader)
        return found
