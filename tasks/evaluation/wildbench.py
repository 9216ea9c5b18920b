"""WildBench's judgements: a score for each solution, and one comparison with a baseline's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from evals import wildbench
from evals.problem import Message
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.evaluation.problems import as_problem
from tasks.evaluation.verdicts import OUTSIDE_KEY, Judge, JudgeRequest, ask_judge, neutraliser, solutions

SCORE, PAIR = "score", "pair"


@step(outside_key=OUTSIDE_KEY, serves={"judge_model": "policy"})
def judge_wildbench(
    plan: Plan,
    store: Store,
    *,
    judge: Judge,
    judge_model: Ref | None,
    servers: Servers,
    problems: Ref,
    turns: Sequence[Sequence[Ref]],
    baselines: Ref | None,
) -> Ref:
    """Write the table `verdicts`: part `score` of each conversation, and part `pair` if there are baselines.

    Raises:
        As `tasks.evaluation.verdicts.ask_judge`.
    """
    safe = neutraliser(judge_model, store, servers)
    ours = solutions(store, turns[0])
    theirs = {row["query_id"]: row["text"] for row in read_rows(store, baselines)} if baselines else {}

    def requests() -> Iterator[JudgeRequest]:
        for row in read_rows(store, problems):
            problem = as_problem(row)
            history: list[Message] = [{**turn, "content": safe(turn["content"])} for turn in problem.history]
            checklist, tasks = wildbench.checklist_and_tasks(problem)
            reference = json.dumps({"checklist": [*map(safe, checklist)], "tasks": tasks})
            shown = replace(problem, query=safe(problem.query), history=tuple(history), reference=reference)
            answer = safe(ours.get(problem.problem_id, ""))
            yield JudgeRequest(
                problem.problem_id, 0, SCORE, wildbench.score_messages(shown, answer), wildbench.read_score
            )
            if baselines:
                messages = wildbench.pair_messages(shown, answer, safe(theirs[problem.problem_id]))
                yield JudgeRequest(problem.problem_id, 0, PAIR, messages, wildbench.read_choice)

    return ask_judge(plan, store, judge=judge, judge_model=judge_model, servers=servers, requests=[*requests()])
