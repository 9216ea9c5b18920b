"""The guards of stage 3: each is tripped by its cause, and by nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest

from infra.store.manifest import Provenance, Ref, begin, finish
from infra.store.schemas import GRADES, RESPONSES, SCORES
from infra.training.limits import DpoGuards, TrainingGuards
from tasks.rewards.drift import Guards, Measured, judged, least_rise, measure_drift

QUERIES, SAMPLES = 40, 4


@pytest.fixture
def tables(world, response):
    """Tables of one policy: samples of queries in two shards, their scores, and graded answers to held-out problems."""

    def made(name: str, *, reward: float = 0.0, right: float = 0.5, held_out: float = 0.5, **changes: Any) -> Any:
        """`right`, `held_out`: shares of right answers. `changes`: of all samples; a tuple's, of the first of each
        query."""
        rng = random.Random(name)
        rows, scores, grades = [], [], []
        for number in range(QUERIES):
            for sample in range(SAMPLES):
                told = {"thought_tokens": 40, "solution_tokens": 20}
                for column, value in changes.items():
                    if not isinstance(value, tuple):
                        told[column] = value
                    elif sample == 0:
                        told[column] = value[0]
                rows.append(response(f"{name}{number}", sample, **told))
                of_sample = {"query_id": f"{name}{number}", "sample": sample, "reward_model": "m", "format_reward": 1.0}
                got = reward + rng.gauss(0, 0.1)
                verified = (number * SAMPLES + sample) % 100 < 100 * right
                scores.append({**of_sample, "reward": got, "verified": verified, "total": got + 1})
                correct = (number * SAMPLES + sample) % 100 < 100 * held_out
                lengths = {"thought_tokens": rows[-1]["thought_tokens"], "solution_tokens": rows[-1]["solution_tokens"]}
                plain = {"problem_id": f"p{number}", "sample": sample, "prediction": "1", "truncated": False}
                grades.append({**plain, **lengths, "correct": correct, "malformed": bool(rows[-1]["violations"])})
        shards = [world.table(RESPONSES, part, f"r-{name}", f"k{n}") for n, part in enumerate((rows[::2], rows[1::2]))]
        return shards, world.table(SCORES, scores, f"s-{name}"), world.table(GRADES, grades, f"g-{name}")

    return made


def model(world, step: str, counts: dict[str, Any]) -> Ref:
    return finish(world.store, "model", step, "k", [], [], Provenance(), counts, begin(world.store, step, "k"))


@pytest.fixture
def rows(world, tables):
    """The rows of `guards` by name, for a policy with these figures in comparison with a plain pi_0."""

    def measured(
        guards: Guards | None = None,
        training: TrainingGuards | None = None,
        figures: dict[str, float] | None = None,
        sampled: bool = True,
        **changes: Any,
    ) -> dict[str, dict[str, Any]]:
        mine, first = tables("policy", **changes), tables("first")
        made = world.do(
            measure_drift,
            "guards-1",
            guards=guards or Guards(),
            training=training,
            policy=model(world, "dpo-1", {"guards": figures} if figures else {}),
            responses=mine[0] if sampled else [],
            scores=mine[1] if sampled else None,
            grades=mine[2],
            first_responses=first[0],
            first_scores=first[1],
            first_grades=first[2],
        )
        return {row.pop("guard"): row for row in world.rows(made)}

    return measured


def tripped(rows: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, row in rows.items() if row["tripped"]}


def test_a_healthy_policy_trips_nothing(rows):
    found = rows(reward=0.5, right=0.55, held_out=0.55, thought_tokens=70, solution_tokens=15)
    assert tripped(found) == set()
    assert found["malformed share"] == {
        "value": 0.0,
        "baseline": 0.0,
        "compared": 0.0,
        "limit": 0.2,
        "tripped": False,
        "setting": "online.guards.max_malformed_share",
    }
    assert found["thoughts length"]["compared"] == pytest.approx(70 / 40)
    assert (found["solution length"]["value"], found["solution length"]["baseline"]) == (15, 20)
    assert found["mean reward"]["compared"] > 0.4
    assert found["mean reward"]["limit"] is None


HACKED = {"reward": 0.5}
CAUSES: list[tuple[dict[str, Any], set[str]]] = [
    ({"finish_reason": ("length",)}, {"truncated share"}),
    ({"violations": (["unclosed_thoughts"],)}, {"malformed share"}),
    ({"thought_tokens": 121}, {"thoughts length"}),
    ({"thought_tokens": 13}, {"thoughts length"}),
    ({"thought_tokens": 0}, {"thoughts length"}),
    ({"solution_tokens": 61}, {"solution length"}),
    ({"solution_tokens": 6}, {"solution length"}),
    ({**HACKED, "right": 0.1}, {"verified accuracy"}),
    ({**HACKED, "held_out": 0.1}, {"held-out accuracy"}),
    ({"reward": -0.5, "right": 0.1, "held_out": 0.1}, set()),  # worse, but no reward hacking
    ({**HACKED, "right": 0.48, "held_out": 0.48}, set()),  # too little to be sure of
]


@pytest.mark.parametrize(("changes", "expected"), CAUSES)
def test_each_guard_is_tripped_by_its_cause(rows, changes, expected):
    found = rows(**changes)
    assert tripped(found) == expected
    for name in expected:
        assert found[name]["setting"].startswith("online.guards.max_")


@pytest.mark.parametrize(("changes", "expected"), [each for each in CAUSES if each[1]])
def test_a_higher_limit_lets_it_pass(rows, changes, expected):
    free = Guards(max_truncated_share=1, max_malformed_share=1, max_length_ratio=1e9, max_accuracy_fall=1)
    found = rows(guards=free, **changes)
    assert tripped(found) == ({"thoughts length"} if changes.get("thought_tokens") == 0 else set())


FIGURES: list[tuple[dict[str, float], str | None]] = [
    ({"max_nonfinite_steps": 1}, "steps that are not finite"),
    ({"max_nonfinite_steps": 0, "max_kl": 0.6, "max_chosen_fall": 0.1}, "KL to pi_0, nats per token"),
    ({"max_kl": 0.1, "max_chosen_fall": 0.6}, "fall of the chosen log-probability, nats per token"),
    ({"max_nonfinite_steps": 0, "max_kl": 0.1, "max_chosen_fall": -2.0}, None),
]


@pytest.mark.parametrize(("figures", "expected"), FIGURES)
def test_the_trainings_figures_are_held_to_the_limits_of_now(rows, figures, expected):
    found = rows(training=DpoGuards(), figures=figures)
    assert tripped(found) == ({expected} if expected else set())
    if expected:
        assert found[expected]["setting"].startswith("online.dpo.guards.max_")


@pytest.mark.parametrize("figures", [figures for figures, _ in FIGURES])
def test_the_trainings_figures_pass_higher_limits(rows, figures):
    lenient = DpoGuards(max_nonfinite_steps=9, max_kl=9, max_chosen_fall=9)
    assert tripped(rows(training=lenient, figures=figures)) == set()


def test_pi_0s_training_is_that_of_stage_2(rows):
    found = rows(training=TrainingGuards(), figures={"max_nonfinite_steps": 0})
    assert found["steps that are not finite"]["setting"] == "sft.guards.max_nonfinite_steps"


def test_the_last_policy_is_judged_by_its_held_out_answers(rows):
    found = rows(sampled=False, thought_tokens=121, violations=(["no_end"],), held_out=0.1)
    assert tripped(found) == {"malformed share", "thoughts length", "held-out accuracy"}
    assert found["thoughts length"]["baseline"] == 40
    assert not {"mean reward", "verified accuracy"} & found.keys()


def test_what_is_not_known_has_no_row(world, tables):
    shards, scores, _ = tables("only")
    made = world.do(
        measure_drift,
        guards=Guards(),
        training=None,
        policy=model(world, "sft", {"guards": {"max_nonfinite_steps": 0}}),
        responses=shards,
        scores=scores,
        grades=None,
        first_responses=shards,
        first_scores=scores,
        first_grades=None,
    )
    shares = ["truncated share", "malformed share", "thoughts length", "solution length"]
    assert [row["guard"] for row in world.rows(made)] == [*shares, "mean reward", "verified accuracy"]


@pytest.mark.parametrize("answers", [[], [{"violations": ["missing_solution"], "finish_reason": "stop"}]])
def test_a_policy_without_one_good_answer_is_measured_too(world, response, answers):
    none = Measured(None, {}, {}, {})
    assert judged(none, none, Guards()) == []
    bad = [response(**each, thought_tokens=0, solution_tokens=0) for each in answers]
    given = {"grades": None, "scores": None, "first_scores": None, "first_grades": None}
    made = world.do(
        measure_drift,
        guards=Guards(),
        training=None,
        policy=model(world, "sft", {}),
        responses=[world.table(RESPONSES, bad, "bad")],
        first_responses=[world.table(RESPONSES, [response()], "good")],
        **given,
    )
    found = {row["guard"] for row in world.rows(made) if row["tripped"]}
    assert found == ({"malformed share"} if answers else set())


def test_a_rise_is_compared_by_problem_where_the_problems_are_the_same():
    before = {f"p{n}": n / 100 for n in range(100)}
    after = {name: value + 0.05 for name, value in before.items()}
    assert least_rise(before, after) == pytest.approx(0.05)
    others = {f"q{name}": value for name, value in after.items()}
    assert least_rise(before, others) == pytest.approx(0.05 - 1.96 * (2 * 0.0841666 / 100) ** 0.5, abs=1e-4)
    assert least_rise({"p": 1.0}, {"p": 0.0}) is None
