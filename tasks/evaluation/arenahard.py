"""Arena-Hard's judgements: two games per question against the baseline's answer, one in each order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from evals import arenahard
from evals.style_control import Version
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.evaluation.problems import as_problem
from tasks.evaluation.verdicts import OUTSIDE_KEY, Judge, JudgeRequest, ask_judge, neutraliser, solutions

GAMES: tuple[Literal[1], Literal[2]] = (1, 2)


@step(outside_key=OUTSIDE_KEY, serves={"judge_model": "policy"})
def judge_arenahard(
    plan: Plan,
    store: Store,
    *,
    judge: Judge,
    judge_model: Ref | None,
    servers: Servers,
    problems: Ref,
    turns: Sequence[Sequence[Ref]],
    baselines: Ref,
    version: Version,
) -> Ref:
    """Write the table `verdicts`: parts `game-1` and `game-2` of each question.

    Raises:
        As `tasks.evaluation.verdicts.ask_judge`.
    """
    safe = neutraliser(judge_model, store, servers)
    ours = solutions(store, turns[0])
    read = partial(arenahard.read_verdict, version=version)

    def requests() -> Iterator[JudgeRequest]:
        for row, baseline in zip(read_rows(store, problems), read_rows(store, baselines), strict=True):
            problem = as_problem(row)
            shown = replace(problem, query=safe(problem.query))
            answers = safe(ours.get(problem.problem_id, "")), safe(baseline["text"])
            for game in GAMES:
                messages = arenahard.judge_messages(shown, game, *answers)
                yield JudgeRequest(problem.problem_id, 0, f"game-{game}", messages, read)

    return ask_judge(plan, store, judge=judge, judge_model=judge_model, servers=servers, requests=[*requests()])
