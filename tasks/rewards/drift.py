"""How far a policy of stage 3 has drifted from pi_0, guard by guard, and which limits it exceeds.

BOLT keeps the policy near pi_0 by a KL penalty (section 3.3). A reward model is only a proxy of what is wanted, so that
a policy can still learn to please it by answers that are longer, off the format, or wrong. These guards notice it in
what each iteration samples and scores anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.steps.step import Plan, step
from infra.store.manifest import Ref, expect
from infra.store.schemas import GUARDS
from infra.store.store import Store
from infra.store.tables import read_rows, write_table
from infra.training.limits import TITLES, DpoGuards, RlGuards, TrainingGuards

Row: TypeAlias = dict[str, Any]
PLACE = "online.guards"
"""Where `Guards` are in a flow's parameters."""


class Guards(BaseModel):
    """Limits on how far a policy of stage 3 may drift from pi_0, the SFT model; one that exceeds one stops the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_truncated_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of an iteration's samples that are cut at max_tokens (this project's choice, as in "
        "an evaluation; `generate.max_truncated_share` is the limit of each shard, while it is sampled).",
    )
    max_malformed_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of an iteration's samples that are off the format, cut ones included (this "
        "project's choice: healthy runs have 0.5 % to 2 % in the nano world, and up to 8 % with SmolLM2).",
    )
    max_length_ratio: float = Field(
        3.0,
        gt=1,
        description="How many times longer, or shorter, than pi_0's the mean thoughts and the mean solution of "
        "well-formed samples may be (this project's choice: BOLT's responses grow along the stages, and those of the "
        "nano and SmolLM2 worlds change by less than 1.2 times).",
    )
    max_accuracy_fall: float = Field(
        0.02,
        ge=0,
        le=1,
        description="How far accuracy may fall below pi_0's while the mean reward rises, as when the policy learns to "
        "please the reward model with wrong answers. It holds for held-out problems, where the flow evaluates them, "
        "and for queries whose answers were verified (`score.verified_weight`). What counts of the fall and of the "
        "rise is what lies outside their 95 % intervals (this project's choice: 2 points; in the nano world, "
        "runs that went wrong fell by 6 and by 23 points).",
    )


class Answers(NamedTuple):
    """What a policy's answers are like: shares of all, and mean tokens of the well-formed ones, None if none is."""

    truncated: float
    malformed: float
    thoughts: float | None
    solution: float | None


class Measured(NamedTuple):
    """What is known of one policy. Rewards and accuracies are means by query or held-out problem; empty if unknown."""

    answers: Answers | None
    rewards: Mapping[str, float]
    verified: Mapping[str, float]
    held_out: Mapping[str, float]


def answers_of(rows: Iterable[Row]) -> Answers | None:
    """The figures of answers, from rows of `grades` or the like; None if there are none."""
    total = truncated = malformed = thoughts = solution = 0
    for row in rows:
        total += 1
        truncated += row["truncated"]
        malformed += row["malformed"]
        if not row["malformed"]:
            thoughts += row["thought_tokens"]
            solution += row["solution_tokens"]
    if not total:
        return None
    lengths = [tokens / formed if (formed := total - malformed) else None for tokens in (thoughts, solution)]
    return Answers(truncated / total, malformed / total, *lengths)


def means(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """The mean value of each id; values that are None do not count."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        if value is not None:
            found[name].append(float(value))
    return {name: sum(each) / len(each) for name, each in found.items()}


def measured(store: Store, responses: Sequence[Ref], scores: Ref | None, grades: Ref | None) -> Measured:
    """What these tables tell of the policy that they were sampled from.

    Lengths and shares are those of `responses`, or, where nothing was sampled from the policy, of the held-out answers.
    """
    columns = ["finish_reason", "violations", "thought_tokens", "solution_tokens"]
    sampled = (
        {**row, "truncated": row["finish_reason"] != "stop", "malformed": bool(row["violations"])}
        for shard in responses
        for row in read_rows(store, shard, columns)
    )

    def by_id(table: Ref | None, name: str, column: str) -> dict[str, float]:
        rows = read_rows(store, table, [name, column]) if table else ()
        return means((row[name], row[column]) for row in rows)

    return Measured(
        answers_of(sampled) or answers_of(read_rows(store, grades) if grades else ()),
        by_id(scores, "query_id", "reward"),
        by_id(scores, "query_id", "verified"),
        by_id(grades, "problem_id", "correct"),
    )


def least_rise(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """The lower end of the 95 % interval of the rise in the mean, by the normal approximation; None if unknown.

    The same ids are compared one by one; else the two sets of ids are independent draws, as each iteration's queries.
    """
    if min(len(before), len(after)) < 2:
        return None
    if before.keys() == after.keys():
        rises = np.array([after[name] - before[name] for name in before])
        return float(rises.mean() - 1.96 * rises.std(ddof=1) / len(rises) ** 0.5)
    first, second = np.array([*before.values()]), np.array([*after.values()])
    error = (first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)) ** 0.5
    return float(second.mean() - first.mean() - 1.96 * error)


def mean(values: Mapping[str, float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values.values()) / len(values) if values else None


def judged(policy: Measured, first: Measured, guards: Guards) -> list[Row]:
    """The rows of `guards`, for a policy in comparison with pi_0, `first`.

    Accuracy stops a run only while the reward rises. The reward of a policy that nothing was sampled from is unknown,
    and taken to rise, since it was trained to.
    """
    rows = []
    if policy.answers and first.answers:
        values, baselines = policy.answers._asdict(), first.answers._asdict()
        for what, limit in (("truncated", guards.max_truncated_share), ("malformed", guards.max_malformed_share)):
            rows.append(
                row(f"{what} share", values[what], baselines[what], values[what], limit, f"{PLACE}.max_{what}_share")
            )
        for what in ("thoughts", "solution"):
            value, baseline, limit = values[what], baselines[what], guards.max_length_ratio
            ratio = value / baseline if value is not None and baseline else None
            apart = ratio is not None and not 1 / limit <= ratio <= limit
            setting = f"{PLACE}.max_length_ratio"
            rows.append(row(f"{what} length", value, baseline, ratio, limit, setting) | {"tripped": apart})
    rise, rises = least_rise(first.rewards, policy.rewards), True
    if policy.rewards:
        rises = rise is not None and rise > 0
        rows.append(row("mean reward", mean(policy.rewards), mean(first.rewards), rise, None, None))
    accuracies = (("verified", policy.verified, first.verified), ("held-out", policy.held_out, first.held_out))
    for what, of_policy, of_first in accuracies:
        if of_policy and of_first:
            fall, limit = least_rise(of_policy, of_first), guards.max_accuracy_fall
            found = row(f"{what} accuracy", mean(of_policy), mean(of_first), fall, limit, f"{PLACE}.max_accuracy_fall")
            rows.append(found | {"tripped": rises and found["tripped"]})
    return rows


def row(
    guard: str,
    value: float | None,
    baseline: float | None,
    compared: float | None,
    limit: float | None,
    setting: str | None,
) -> Row:
    """A row of `guards`, tripped if the figure that is compared exceeds the limit."""
    tripped = compared is not None and limit is not None and compared > limit
    columns = {"guard": guard, "value": value, "baseline": baseline, "compared": compared, "limit": limit}
    return {**columns, "tripped": tripped, "setting": setting}


def training_rows(figures: Mapping[str, float], guards: TrainingGuards) -> list[Row]:
    """The rows of `guards` for a policy's training, from the figures in its manifest (`infra.training.limits`)."""
    places = {DpoGuards: "online.dpo.guards", RlGuards: "online.rl.guards"}
    limits, place = guards.model_dump(), places.get(type(guards), "sft.guards")
    return [
        row(TITLES[field], value, None, value, limits[field], f"{place}.{field}") for field, value in figures.items()
    ]


@step
def measure_drift(
    plan: Plan,
    store: Store,
    *,
    guards: Guards,
    training: TrainingGuards | None,
    policy: Ref,
    responses: Sequence[Ref],
    scores: Ref | None,
    grades: Ref | None,
    first_responses: Sequence[Ref],
    first_scores: Ref | None,
    first_grades: Ref | None,
) -> Ref:
    """Write the table `guards` of one policy. No other step reads it, so that changed limits cost only this step.

    Args:
        training: the limits of the training that made `policy`; None if it was made elsewhere.
        responses: what the next iteration samples from `policy`; none for the last policy.
        scores: their scores.
        grades: its sampled answers to held-out problems, if the flow evaluates.
        first_responses: as `responses`, of pi_0; likewise the others.
    """
    found = measured(store, responses, scores, grades)
    first = measured(store, first_responses, first_scores, first_grades)
    if not responses:  # its held-out answers are compared with pi_0's
        first = first._replace(answers=measured(store, [], None, first_grades).answers)
    rows = judged(found, first, guards)
    if training:
        rows += training_rows(expect(store, policy).counts.get("guards", {}), training)
    return write_table(store, plan.step, plan.key, GUARDS, [rows], plan.provenance)
