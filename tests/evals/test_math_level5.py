from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.oracles import level5_lines
from evals.math_level5 import INSTRUCTION, extract, grade, read, reads_boxes

BENCH = Path(__file__).parents[2].parent / "shared" / "bench" / "math_l5"
official = pytest.mark.skipif(not BENCH.is_dir(), reason="the official outputs are missing (../shared/bench/math_l5)")

RECORD = {"id": 3, "problem": "What is $1 + 1$?", "answer": "2"}
TEN_MB = 10_000_000


def rows(name):
    return [json.loads(line) for line in (BENCH / name).read_text().splitlines()]


def test_read():
    problem = read(RECORD, 0)
    assert problem.problem_id == "3"
    assert problem.query == f"What is $1 + 1$?\n\n{INSTRUCTION}"
    assert problem.reference == "2"
    assert read({**RECORD, "id": "math-l5-3", "answer": "-221_3"}, 0).reference == "-221_3"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", [None, True, "", " ", 1.5, []]),
        ("problem", [None, "", " \n", 5, ["2"]]),
        ("answer", [None, "", "x", 5, ["2"]]),
    ],
)
def test_a_bad_record_is_refused_by_row_and_field(field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"row 17, field {field}: expected"):
            read({**RECORD, field: value}, 17)
    with pytest.raises(ValueError, match=rf"row 17, field {field}: expected .* found None"):
        read({name: each for name, each in RECORD.items() if name != field}, 17)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ('{"reasoning": "so", "answer": "42"}', "42"),
        ('```json\n{\n  "reasoning": "a\nb",\n  "answer": "42"\n}\n```', "42"),
        ('{"reasoning": "so", "answer": 42}', "42"),
        ('{"reasoning": "so", "answer": [1, 2]}', "[1, 2]"),
        ('{"reasoning": "so", "answer": {"x": 1}}', "{'x': 1}"),
        ('{"reasoning": "so", "answer": null}', "None"),
        ('{"answer": "1"} {"answer": "2"}', "1"),
        ('{"reasoning": "the set {1, 2}", "answer": "42"}', "42"),
        ('{"reasoning": "\\(x\\)", "answer": "42"}', "42"),  # no JSON, because of the escapes
        ('{"answer": "1", "answer": "2"}', "2"),
        ('{1} {"answer": "2"}', "2"),
        ('{"reasoning": "so", "answer": "42"', "42"),
        ('{"reasoning": "so", answer: 42}', "42}"),
        ('"answer" : 42, and', "42"),
        ("Final answer: 42, I think", "42"),
        ("answer:", ""),
        ("The final answer is: $\\boxed{36}$", "36"),
        ("\\boxed{\\frac12}", None),
        ("The answer is 42.", None),
        ("ANSWER: 42", None),
        ("{}", None),
        ("", None),
        (None, None),
    ],
)
def test_extract(solution, answer):
    assert extract(solution) == answer
    if answer is None:
        assert grade(solution, "42") == (None, False)


def test_a_box_is_read_only_if_there_is_no_other_answer():
    assert extract('\\boxed{1} {"answer": "2"}') == "2"
    assert grade("\\boxed{36}", "36") == ("36", True)
    assert grade("\\boxed{36}", "36", boxed=False) == (None, False)


@pytest.mark.parametrize(
    ("model", "solution", "reads"),
    [
        ("Meta-Llama-3.1-8B-Instruct", "So it is $\\boxed{36}$", True),
        ("Meta-Llama-3.1-8B-Instruct", "So it is $\\boxed{36}$, as we saw in the beginning.", False),
        ("Phi-3-mini-4k-instruct", "So it is $\\boxed{36}$", False),
        ("Meta-Llama-3-8B-Instruct", "So it is $\\boxed{36}$", False),
    ],
)
def test_boxes_are_counted_only_where_zeroeval_reads_them(tmp_path, model, solution, reads):
    """The oracle counts a box that its authors do not read as no answer, whatever the model."""
    files = {
        "published_scoreboard.json": {model: {"acc": "100.00", "no_answer": "0.00"}},
        "problems.jsonl": {"id": 0, "problem": "p", "answer": "36"},
        f"outputs_{model}.jsonl": {"id": 0, "output": solution},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert reads_boxes(model, solution) is reads
    assert [line.here for line in level5_lines(tmp_path)] == ["100.00 / 0.00" if reads else "0.00 / 100.00"]


@pytest.mark.parametrize(
    ("answer", "reference", "correct"),
    [
        ("42", "42", True),
        ("42.0", "42", True),
        (" 42 units", "42", True),
        ("$1,234$", "1234", True),
        ("x = 5 or 7", "5", True),  # lenient: only the first number counts
        ("x = 5 or 7", "7", False),
        ("-221", "-221_3", True),
        ("3-5", "3", True),
        ("84/2", "42", True),
        ("(168 / 2) / 2", "42", True),
        ("-84/-2", "42", True),
        ("2**3/4", "2", True),
        ("1/3", "1", False),
        ("1/3", "0.3333333333333333", True),
        ("5 1/2", "5", True),  # no arithmetic: the first number
        ("1/0", "1", True),
        ("9**9**9**9/2", "9", True),
        ("__import__('os').abort()/1", "1", True),
        ("42", "#42", True),
        ("٤٢", "42", True),
        ("４２", "42", True),
        ("\\frac{1}{2}", "1", True),
        ("forty-two", "42", False),
        ("NaN", "42", False),
        ("", "42", False),
        ("-", "42", False),
    ],
)
def test_grade(answer, reference, correct):
    assert grade(json.dumps({"reasoning": "so", "answer": answer}), reference) == (answer, correct)


@pytest.mark.parametrize(
    "solution",
    [
        "{" * TEN_MB,
        "{}" * (TEN_MB // 2),
        "{" * (TEN_MB // 2) + "}" * (TEN_MB // 2),
        '{"answer":' * 100_000 + "1" + "}" * 100_000,
        '{"answer":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"answer": ' + "9" * TEN_MB + "}",
        '{"answer": "' + "9" * TEN_MB + '"}',
        '{"answer": "' + "1/" * TEN_MB + '"}',
        '{"answer": "' + "(" * 99 + "1" + ")" * 99 + '/2"}',
        '{"answer": "' + "-" * 190 + '1/2"}',
        '{"answer": NaN}',
        '{"answer": "\0"}',
        '{"answer": "\\ud800"}',
        "answer:" + "-" * TEN_MB,
        '"answer"' + " " * TEN_MB,
        '"answer":"' * (TEN_MB // 10),
        "\\boxed{" * (TEN_MB // 7),
        "\0" * TEN_MB,
    ],
    ids=lambda solution: f"{solution[:14]!r}...{len(solution)}",
)
def test_hostile_text_is_graded_wrong(solution):
    assert grade(solution, "42")[1] is False


TOKENS = r"""{ } " \ [ ] : , "answer" answer "reasoning" 1 / - . null \boxed{ ٣ ( ) ** % _ e"""
SCRAPS = [*TOKENS.split(), "\n", "\0", "\ud800"]
scraps = st.lists(st.sampled_from(SCRAPS), max_size=25).map("".join)


@settings(max_examples=500, deadline=None)
@given(st.none() | st.text() | scraps, st.text() | scraps)
def test_grading_never_raises_and_is_deterministic(solution, reference):
    found = grade(solution, reference)
    assert grade(solution, reference) == found
    assert found[0] is not None or not found[1]


@settings(max_examples=300, deadline=None)
@given(st.text() | scraps, st.integers(-(10**9), 10**9))
def test_a_json_answer_is_read_whatever_the_reasoning(reasoning, number):
    solution = json.dumps({"reasoning": reasoning.replace("{", "").replace("}", ""), "answer": str(number)})
    assert grade(solution, str(number)) == (str(number), True)
    assert not grade(solution, str(number + 1))[1]


@official
@pytest.mark.parametrize(
    ("model", "acc", "no_answer"),
    [
        ("o1-mini-2024-09-12", "89.32", "5.27"),
        ("Qwen2.5-72B-Instruct", "60.19", "1.53"),
        ("gpt-4o-2024-08-06", "55.34", "4.02"),
        ("Qwen2.5-7B-Instruct", "51.46", "2.77"),
        ("Meta-Llama-3.1-70B-Instruct", "43.13", "12.21"),
    ],
)
def test_reproduces_the_published_figures_and_every_item_label(model, acc, no_answer):
    published = json.loads((BENCH / "published_scoreboard.json").read_text())[model]
    assert (published["acc"], published["no_answer"], published["total"]) == (acc, no_answer, 721)
    references = {row["id"]: read(row, number).reference for number, row in enumerate(rows("problems.jsonl"))}
    answers = rows(f"outputs_{model}.jsonl")
    assert len(answers) == len(references) == 721
    expected = {row["id"]: row["labels"][model] for row in rows("expected_labels_43models.jsonl")}
    graded = {
        row["id"]: grade(row["output"], references[row["id"]], boxed=reads_boxes(model, row["output"]))
        for row in answers
    }
    assert all(graded[row["id"]][0] == row["extracted"] for row in answers)
    labels = {key: None if prediction is None else correct for key, (prediction, correct) in graded.items()}
    assert labels == expected
    assert f"{100 * sum(correct for _, correct in graded.values()) / 721:.2f}" == acc
    assert f"{100 * sum(prediction is None for prediction, _ in graded.values()) / 721:.2f}" == no_answer
