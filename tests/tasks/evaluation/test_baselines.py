from __future__ import annotations

from typing import Any

import pytest
from layouts import arena, arena_answer, file_of, wildbench, wildbench_answer

from infra.errors import BadInput
from infra.store.schemas import PROBLEMS
from tasks.evaluation.baselines import read_baselines
from tasks.evaluation.problems import READ, as_row
from tasks.queries.sources import Source

GEMINI = "gemini-2.0-flash-001"


def baselines(world: Any, benchmark: Any, problems: list[dict[str, Any]], *sources: Source) -> list[tuple[str, ...]]:
    table = world.table(PROBLEMS, [as_row(READ[benchmark](record, 0)) for record in problems], "problems")
    made = world.do(read_baselines, benchmark=benchmark, sources=sources, problems=table)
    return [(row["query_id"], row["model"], row["text"]) for row in world.rows(made)]


def test_each_category_of_arena_hard_has_its_own_baseline(world, tmp_path):
    """The authors' folder has both models' answers to every prompt. The baseline's thoughts are not taken over."""
    problems = [arena(2, "creative_writing"), arena(1), arena(3, "math")]
    answers = [
        file_of(tmp_path / f"{model}.jsonl", [arena_answer(n, model) for n in (1, 2, 3, 4)])
        for model in ("o3-mini-2025-01-31", GEMINI)
    ]
    assert baselines(world, "arena-hard-v2.0", problems, *answers) == [
        ("u2", GEMINI, f"{GEMINI} on 2"),
        ("u1", "o3-mini-2025-01-31", "o3-mini-2025-01-31 on 1"),
        ("u3", "o3-mini-2025-01-31", "o3-mini-2025-01-31 on 3"),
    ]


def test_the_only_answer_is_taken_whichever_model_it_is_from(world, tmp_path):
    answers = file_of(tmp_path / "mine.jsonl", [arena_answer(1, "mine", "")])
    assert baselines(world, "arena-hard-v2.0", [arena(1)], answers) == [("u1", "mine", "")]
    answers = file_of(tmp_path / "wild.jsonl", [wildbench_answer(2, "b"), wildbench_answer(1, "a")])
    records = [wildbench(1), wildbench(2)]
    table = world.table(PROBLEMS, [as_row(READ["wildbench"](record, 0)) for record in records], "problems", "wild")
    made = world.do(read_baselines, key="wild", benchmark="wildbench", sources=[answers], problems=table)
    assert [(row["query_id"], row["text"]) for row in world.rows(made)] == [("s1", "a"), ("s2", "b")]


def test_a_missing_answer_is_named(world, tmp_path):
    answers = file_of(tmp_path / "a.jsonl", [arena_answer(1)])
    with pytest.raises(BadInput) as error:
        baselines(world, "arena-hard-v2.0", [arena(1), arena(2)], answers)
    for part in (answers.place, "0 answers to arena-hard-v2.0's problem u2", "category hard_prompt", "expected one"):
        assert part in str(error.value)
    assert not world.store.exists("made/k/manifest.json")


@pytest.mark.parametrize("models", [("mine", "yours"), ("o3-mini-2025-01-31", "o3-mini-2025-01-31")])
def test_several_candidates_are_refused_and_counted(world, tmp_path, models):
    answers = [file_of(tmp_path / f"{n}.jsonl", [arena_answer(1, model)]) for n, model in enumerate(models)]
    with pytest.raises(BadInput, match=r"0\.jsonl, .*1\.jsonl: 2 answers to arena-hard-v2.0's problem u1"):
        baselines(world, "arena-hard-v2.0", [arena(1)], *answers)


def test_answers_of_two_models_to_wildbench_are_too_many(world, tmp_path):
    answers = file_of(tmp_path / "w.jsonl", [wildbench_answer(1), wildbench_answer(1, model="claude-3-haiku")])
    with pytest.raises(BadInput, match=r"2 answers to wildbench's problem s1"):
        baselines(world, "wildbench", [wildbench(1)], answers)


def test_a_bad_record_is_named_by_source_row_and_field(world, tmp_path):
    answers = file_of(tmp_path / "a.jsonl", [arena_answer(1), {**arena_answer(2), "messages": []}])
    with pytest.raises(BadInput, match=r"a\.jsonl, row 1: field messages\[-1\]: expected a message of the assistant"):
        baselines(world, "arena-hard-v2.0", [arena(1)], answers)


def test_half_of_a_surrogate_pair_is_named(world, tmp_path):
    answers = file_of(tmp_path / "a.jsonl", [arena_answer(1, text="oh \ud83d")])
    with pytest.raises(BadInput, match=r"a\.jsonl, row 0: field of the answer holds '\\ud83d'"):
        baselines(world, "arena-hard-v2.0", [arena(1)], answers)
