"""MT-Bench's judgements: a rating of 1 to 10 for each turn's solution."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from evals import mtbench
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.evaluation.problems import as_problem
from tasks.evaluation.verdicts import OUTSIDE_KEY, Judge, JudgeRequest, ask_judge, neutraliser, solutions


@step(outside_key=OUTSIDE_KEY, serves={"judge_model": "policy"})
def judge_mtbench(
    plan: Plan,
    store: Store,
    *,
    judge: Judge,
    judge_model: Ref | None,
    servers: Servers,
    problems: Ref,
    turns: Sequence[Sequence[Ref]],
) -> Ref:
    """Write the table `verdicts`: parts `turn-1` and `turn-2` of each question.

    `turns`: the responses to the first and to the second turn, each as shards.

    Raises:
        As `tasks.evaluation.verdicts.ask_judge`.
    """
    safe = neutraliser(judge_model, store, servers)
    by_turn = [solutions(store, responses) for responses in turns]

    def requests() -> Iterator[JudgeRequest]:
        for row in read_rows(store, problems):
            problem = as_problem(row)
            shown = replace(
                problem,
                query=safe(problem.query),
                follow_ups=tuple(map(safe, problem.follow_ups)),
                reference=json.dumps([*map(safe, json.loads(problem.reference or "[]"))]),
            )
            answers = [safe(found.get(problem.problem_id, "")) for found in by_turn]
            for turn in range(1, 2 + len(problem.follow_ups)):
                messages = mtbench.judge_messages(shown, turn, answers)
                yield JudgeRequest(problem.problem_id, 0, f"turn-{turn}", messages, mtbench.read_rating)

    return ask_judge(plan, store, judge=judge, judge_model=judge_model, servers=servers, requests=[*requests()])
