"""Verifiers: programs that tell whether a solution gives a reference answer."""

from __future__ import annotations

import ast
import importlib.util
import logging
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from infra.errors import BadInput
from infra.processes.limited import Limited, NoResult

log = logging.getLogger(__name__)

Verifier = Literal["math500", "everyday", "short-answer"]
CALLS = 32
"""Calls of the user's own verifier that must all be without a verdict before it is taken for broken."""


def module_file(module: str) -> Path:
    """The source file of a user's module. Raises `ValueError` if there is none."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        path = ", ".join(filter(None, sys.path[:3]))
        raise ValueError(f"there is no module {module} with a source file on Python's path: {path}, ...")
    return Path(found.origin)


def _there(named: str) -> str:
    """Refuse a function of the user's that is not there, before anything is sampled."""
    module, _, name = named.partition(":")
    try:
        tree = ast.parse(module_file(module).read_bytes())
    except SyntaxError as error:
        raise ValueError(f"module {module} cannot be read: {error.msg} (line {error.lineno})") from error
    if name not in set(_bound(tree.body)):
        raise ValueError(f"module {module} defines no function {name}")
    return named


def _bound(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that a module binds, also in conditions and in `try`: functions, imports and assignments."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (each.asname or each.name.partition(".")[0] for each in names)
            case ast.Assign(targets=targets):
                yield from (each.id for each in targets if isinstance(each, ast.Name))
            case ast.If(body=inner, orelse=more):
                yield from _bound([*inner, *more])
            case ast.Try(body=inner, orelse=more, finalbody=last, handlers=handlers):
                yield from _bound([*inner, *more, *last, *(each for found in handlers for each in found.body)])


Own = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"), AfterValidator(_there)]
"""A function of the user's, as `package.module:name`, which must be there."""


class Verify:
    """Tells whether a solution gives a reference answer.

    A call without a verdict (it raised, took too long, or returned something else) is None: the answer is neither right
    nor wrong. It is counted by its reason.
    """

    def __init__(self, named: str, child: Limited) -> None:
        self.named, self._child = named, child
        self.calls, self.failed = 0, Counter[str]()
        self._last = ""

    def __call__(self, solution: str, reference: str) -> bool | None:
        self.calls += 1
        found = self._child(solution, reference)
        if isinstance(found, NoResult):
            reason, detail = str(found.reason), found.detail
        else:
            verdict = found.get("correct") if isinstance(found, dict) else found
            if verdict in (0, 1):  # a reward function returns numbers
                return bool(verdict)
            reason, detail = "no verdict", f"it returned {found!r}, expected True, False, 1 or 0"
        self.failed[f"not verified: {reason}"] += 1
        self._last = f"{reason}: {detail[:500]}"
        return None

    def check(self) -> None:
        """Raise `BadInput` if no call of the user's own verifier had a verdict. A few answers, fewer than `CALLS`, may
        be unreadable."""
        if ":" in self.named and 0 < self.failed.total() == self.calls:
            problem = f"verifier: none of {self.calls} calls of {self.named} had a verdict; the last one: {self._last}"
            if self.calls >= CALLS:
                raise BadInput(problem)
            log.warning("%s", problem)


@contextmanager
def verifier(named: str) -> Iterator[Verify]:
    """The verifier of this name, in a process that the first call starts."""
    own = ":" in named
    with Limited(named if own else f"evals.graders:{named.replace('-', '_')}") as child:
        yield Verify(named, child)


def neutral_rewards(samples: Iterable[tuple[str, bool | None, float]]) -> dict[str, float]:
    """By query id, the mean reward of the samples that a verifier had a verdict on: what a sample of the query without
    one counts for, since it is neither right nor wrong. Queries whose samples all have none are left out.

    Args:
        samples: query id, verdict and reward of each sample.
    """
    judged: defaultdict[str, list[float]] = defaultdict(list)
    for query_id, verdict, reward in samples:
        if verdict is not None:
            judged[query_id].append(reward)
    return {query_id: statistics.fmean(rewards) for query_id, rewards in judged.items()}
