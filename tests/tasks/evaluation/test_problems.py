"""Benchmarks from files in their authors' layouts to the table `problems`, and back to problems."""

from __future__ import annotations

import json
from typing import Any

import pytest
from layouts import arena, file_of, math500, mtbench, mtbench_reference, wildbench, zebra

from evals.problem import Problem
from infra.errors import BadInput
from infra.store.schemas import PROBLEMS
from tasks.evaluation.problems import READ, as_problem, as_row, read_problems
from tasks.queries.sources import Source

LAYOUTS: dict[str, Any] = {
    "math500": math500,
    "zebralogic": zebra,
    "mt-bench": mtbench,
    "arena-hard-v0.1": lambda number: {
        "question_id": f"u{number}",
        "category": "arena-hard-v0.1",
        "cluster": "c",
        "turns": [{"content": f"hard {number}"}],
    },
    "arena-hard-v2.0": arena,
    "wildbench": wildbench,
}


def problems_of(world: Any, benchmark: Any, *sources: Source, **more: Any) -> list[Problem]:
    made = world.do(read_problems, **{"key": f"k{len(more)}", **more}, benchmark=benchmark, sources=sources)
    return [as_problem(row) for row in world.rows(made)]


def test_every_benchmark_with_a_reader_has_a_layout_here():
    assert set(LAYOUTS) == READ.keys() - {"math-level5"}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("benchmark", LAYOUTS)
def test_problems_come_in_the_files_order_and_whole(world, tmp_path, benchmark, ending):
    """The public data sets are Parquet files: all their columns must reach the reader."""
    records = [LAYOUTS[benchmark](number) for number in (3, 1, 2)]
    sources = [file_of(tmp_path / f"{part}.{ending}", rows) for part, rows in (("a", records[:2]), ("b", records[2:]))]
    expected = [READ[benchmark](record, 0) for record in records]
    assert problems_of(world, benchmark, *sources) == expected


def test_the_first_problems_are_taken(world, tmp_path):
    sources = [file_of(tmp_path / f"{part}.jsonl", [math500(2 * part), math500(2 * part + 1)]) for part in (0, 1)]
    assert [p.reference for p in problems_of(world, "math500", *sources)] == ["42"] * 4
    found = problems_of(world, "math500", *sources, limit=3)
    assert [p.problem_id for p in found] == [f"test/algebra/{n}.json" for n in (0, 1, 2)]
    again = world.do(read_problems, key="many", benchmark="math500", sources=sources, limit=99)
    assert again.rows == 4


def test_a_row_converts_back_to_its_problem(world):
    problem = Problem(
        problem_id="p",
        query="q é \n {x}",
        history=({"role": "user", "content": "né"}, {"role": "assistant", "content": ""}),
        follow_ups=("one", "two"),
        reference=None,
        category=None,
    )
    table = world.table(PROBLEMS, [as_row(problem)])
    assert [as_problem(row) for row in world.rows(table)] == [problem]


# ---- faults of a file are reported before anything is sampled


def refused(world: Any, benchmark: Any, *sources: Source, **more: Any) -> str:
    with pytest.raises(BadInput) as error:
        world.do(read_problems, benchmark=benchmark, sources=sources, **more)
    assert not world.store.exists("made/k/manifest.json")
    return str(error.value)


@pytest.mark.parametrize(
    ("benchmark", "bad", "field"),
    [
        ("math500", math500(1, answer=""), "answer"),
        ("zebralogic", zebra(1, size="3*3"), "size"),
        ("mt-bench", mtbench(1, turns=[]), "turns"),
        ("arena-hard-v2.0", arena(1, prompt=None), "prompt"),
        ("wildbench", wildbench(1, primary_tag="Poetry"), "primary_tag"),
        ("wildbench", wildbench(1, checklist=[]), "checklist"),
    ],
)
def test_source_row_and_field_are_named(world, tmp_path, benchmark, bad, field):
    source = file_of(tmp_path / "f.jsonl", [LAYOUTS[benchmark](0), bad])
    message = refused(world, benchmark, source)
    assert message.startswith(f"{source.place}, row 1")
    assert f"field {field}: expected" in message


def test_a_duplicate_problem_is_refused_also_across_files(world, tmp_path):
    sources = [file_of(tmp_path / name, [zebra(1), zebra(n)]) for name, n in (("a.jsonl", 2), ("b.jsonl", 3))]
    message = refused(world, "zebralogic", *sources)
    assert message == f"{sources[1].place}, row 0: problem lgp-test-2x2-1 is a duplicate: remove it"


@pytest.mark.parametrize(
    ("benchmark", "category"), [("arena-hard-v0.1", "hard_prompt"), ("arena-hard-v2.0", "arena-hard-v0.1")]
)
def test_prompts_of_the_other_version_of_arena_hard_are_refused(world, tmp_path, benchmark, category):
    message = refused(world, benchmark, file_of(tmp_path / "f.jsonl", [arena(1, category)]))
    assert f"row 0: field category: expected one of {benchmark[-4:]}'s, found '{category}'" in message


def test_half_of_a_surrogate_pair_is_named(world, tmp_path):
    source = file_of(tmp_path / "f.jsonl", [wildbench(0), wildbench(1)])
    path = tmp_path / "f.jsonl"
    path.write_text(path.read_text().replace("said 1", r"said \ud83d"))
    assert f"{source.place}, row 1: field history holds '\\ud83d', half of a character" in refused(
        world, "wildbench", source
    )


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.parquet"])
def test_a_missing_file_is_named(world, tmp_path, name):
    assert name in refused(world, "math500", Source(path=str(tmp_path / name)))


def test_an_empty_file_is_named(world, tmp_path):
    assert "holds no rows" in refused(world, "math500", file_of(tmp_path / "f.jsonl", []))


# ---- MT-Bench's reference answers


def test_reference_answers_are_joined_by_the_id(world, tmp_path):
    questions = [mtbench(81), mtbench(111, "math"), mtbench(121, "coding", turns=["only"])]
    source = file_of(tmp_path / "question.jsonl", questions)
    given = [mtbench_reference(121, "x"), mtbench_reference(7), mtbench_reference(111)]
    for ending in ("jsonl", "parquet"):
        references = file_of(tmp_path / f"gpt-4.{ending}", given)
        found = problems_of(world, "mt-bench", source, references=references, key=ending)
        assert [p.problem_id for p in found] == ["81", "111", "121"]
        assert [p.reference and json.loads(p.reference) for p in found] == [None, ["truth 111.1", "truth 111.2"], ["x"]]


def test_only_questions_within_the_limit_need_a_reference(world, tmp_path):
    source = file_of(tmp_path / "question.jsonl", [mtbench(1), mtbench(2, "math")])
    assert len(problems_of(world, "mt-bench", source, limit=1)) == 1


@pytest.mark.parametrize("given", [None, [mtbench_reference(7)], [mtbench_reference(111, "one turn")]])
def test_a_missing_reference_answer_is_reported_when_the_questions_are_read(world, tmp_path, given):
    source = file_of(tmp_path / "question.jsonl", [mtbench(81), mtbench(111, "math")])
    references = file_of(tmp_path / "gpt-4.jsonl", given) if given else None
    message = refused(world, "mt-bench", source, references=references)
    assert message.startswith((references or source).place)
    assert "question 111 (math)" in message


def test_references_in_the_question_file_are_enough(world, tmp_path):
    source = file_of(tmp_path / "question.jsonl", [mtbench(111, "math", reference=["a", "b"])])
    assert problems_of(world, "mt-bench", source)[0].reference == '["a", "b"]'


def test_a_bad_file_of_reference_answers_is_named(world, tmp_path):
    source = file_of(tmp_path / "question.jsonl", [mtbench(111, "math")])
    references = file_of(tmp_path / "gpt-4.jsonl", [mtbench_reference(111), mtbench_reference(111)])
    message = refused(world, "mt-bench", source, references=references)
    assert message == f"{references.place}: row 1: the reference answer to question 111 is a duplicate"
