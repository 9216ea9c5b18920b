from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.zebralogic import GROUPS, Figures, Grade, figures, grade, read

BENCH = Path(__file__).parents[2].parent / "shared" / "bench" / "zebra"
official = pytest.mark.skipif(not BENCH.is_dir(), reason="the official outputs are missing (../shared/bench/zebra)")

RECORD = {
    "id": "small",
    "size": "2*3",
    "puzzle": "There are 2 houses.\n{skeleton}\n",
    "solution": {
        "header": ["House", "Name", "Drink", "Pet"],
        "rows": [["1", "Eric", "iced tea", "cat"], ["2", "Arnold", "water", "dog"]],
    },
    "created_at": "2024-07-03",
}
TABLE = {
    "House 1": {"Name": "Eric", "Drink": "iced tea", "Pet": "cat"},
    "House 2": {"Name": "Arnold", "Drink": "water", "Pet": "dog"},
}
REFERENCE = read(RECORD, 0).reference or ""
NOTHING = Grade(parsed=False, prediction=None, correct_cells=0, total_cells=6, solved=False)
ABSENT = object()

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["Eric", " CAT ", "water"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["House 1", "House 2", "Name", "Pet", "solution"]) | st.text(), inner, max_size=3
        )
    ),
    max_leaves=12,
)
scraps = st.lists(
    st.sampled_from(
        [
            "{",
            "}",
            '"',
            "\\",
            "\n",
            "[",
            "]",
            ":",
            ",",
            '"solution"',
            '"House 1"',
            '{"Name": "Eric"}',
            "null",
            "NaN",
            "٣",
        ]
    )
).map("".join)


def answer(table: object = TABLE, **rest: object) -> str:
    return json.dumps({"reasoning": "So it is.", "solution": table, **rest}, indent=4)


def with_cell(value: object) -> str:
    return answer({**TABLE, "House 2": {**TABLE["House 2"], "Pet": value}})


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (BENCH / name).open(encoding="utf-8")]


@pytest.fixture(scope="module")
def references() -> dict[str, str]:
    problems = [read(record, row) for row, record in enumerate(rows_of("zebra_puzzles_gold.jsonl"))]
    return {problem.problem_id: problem.reference or "" for problem in problems}


def test_read():
    problem = read(RECORD, 0)
    assert (problem.problem_id, problem.category, problem.follow_ups, problem.history) == ("small", "2*3", (), ())
    assert json.loads(problem.reference or "") == RECORD["solution"]
    assert "licence" not in problem.query
    assert problem.query.startswith("\n# Example Puzzle \n\nThere are 3 houses")
    assert RECORD["puzzle"] in problem.query, "braces in a puzzle are no placeholders"
    blank = {"Name": "___", "Drink": "___", "Pet": "___"}
    form = {"reasoning": "___", "solution": {"House 1": blank, "House 2": blank}}
    assert problem.query.endswith(f"in the following json format:\n\n{json.dumps(form, indent=4)}\n\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ABSENT}, "row 7: field id: expected a non-empty string, found None"),
        ({"id": 3}, "row 7: field id: expected a non-empty string, found 3"),
        ({"puzzle": " "}, "row 7: field puzzle: expected a non-empty string, found ' '"),
        ({"size": "3*2"}, r"row 7: field size: expected 2\*3, as in the solution, found '3\*2'"),
        ({"solution": ABSENT}, "row 7: field solution.header: .* found None"),
        ({"solution": "{}"}, "row 7: field solution.header: .* found None"),
        ({"solution": {"header": []}}, r"row 7: field solution.header: .* found \[\]"),
        ({"solution": {"header": ["House"]}}, "row 7: field solution.header"),
        ({"solution": {"header": ["Name", "House"]}}, "row 7: field solution.header"),
        ({"solution": {"header": ["House", "Pet", "Pet"]}}, "row 7: field solution.header"),
        (
            {"solution": {"header": ["House", "Pet"]}},
            r"row 7: field solution.rows: .* 2 non-empty strings each, found \[\]",
        ),
        ({"solution": {"header": ["House", "Pet"], "rows": [["1"]]}}, "row 7: field solution.rows"),
        ({"solution": {"header": ["House", "Pet"], "rows": [[1, "cat"]]}}, "row 7: field solution.rows"),
        ({"solution": {"header": ["House", "Pet"], "rows": [["___", "___"]]}}, "public data set hides"),
    ],
)
def test_a_bad_record_is_refused_by_row_and_field(change, message):
    record = {name: value for name, value in {**RECORD, **change}.items() if value is not ABSENT}
    with pytest.raises(ValueError, match=message):
        read(record, 7)


@pytest.mark.parametrize(
    "solution",
    [
        answer(),
        f"First {{a guess}}, then\n```json\n{answer()}\n```\nDone }} .",
        f"{answer({})} No, wait: {answer()}",
        answer()
        .upper()
        .replace("HOUSE ", "House ")
        .replace("NAME", "Name")
        .replace("DRINK", "Drink")
        .replace("PET", "Pet")
        .replace("SOLUTION", "solution"),
        with_cell(" Dog\t"),
        with_cell(["dog", "cat"]),
        answer({**TABLE, "House 3": None, "note": "more than asked"}),
        answer(reasoning=None),
        answer(reasoning="Both {braces} are paired."),
        answer().replace("water", "wat\ner"),
        '{"solution": 1, ' + answer()[1:],
    ],
)
def test_solved(solution):
    found = grade(solution, REFERENCE)
    assert (found.parsed, found.solved, found.correct_cells, found.total_cells) == (True, True, 6, 6)
    assert json.loads(found.prediction or "") == {
        "House 1": {"Name": "eric", "Drink": "iced tea", "Pet": "cat"},
        "House 2": {"Name": "arnold", "Drink": "water", "Pet": "dog"},
    }


@pytest.mark.parametrize(
    "solution",
    [
        None,
        "",
        "Eric lives in the first house.",
        answer(None),
        '{"reasoning": "no solution"}',
        answer()[:-1],
        answer() + " {not JSON}",
        "Let S = {1, 2 be a set. " + answer(),
        answer(reasoning="a brace { in a text counts"),
        answer().replace("So it is.", "a\ttab"),
        answer().replace('"', "'"),
        json.dumps(TABLE),
        '{"solution": ' + "9" * 5000 + "}",
        '{"solution": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001,
        "{" * 100_000,
        "}{",
    ],
)
def test_no_answer(solution):
    assert grade(solution, REFERENCE) == NOTHING


@pytest.mark.parametrize(
    "value", [None, "", " ", [], [None], [["dog"]], {}, {"Pet": "dog"}, 0, 1.5, True, "dogs", "\u0501og"]
)
def test_a_wrong_cell(value):
    found = grade(with_cell(value), REFERENCE)
    assert (found.parsed, found.solved, found.correct_cells) == (True, False, 5)


@pytest.mark.parametrize(
    "table", ["", "House 1", [], ["House 1"], 0, False, {}, {"house 1": TABLE["House 1"]}, {"House 1": "Name"}]
)
def test_an_answer_without_any_cell(table):
    found = grade(answer(table), REFERENCE)
    assert (found.parsed, found.solved, found.correct_cells) == (True, False, 0)
    assert set(json.loads(found.prediction or "")["House 2"].values()) == {None}


@settings(max_examples=300, deadline=None)
@given(st.none() | st.text() | scraps | values.map(json.dumps) | values.map(answer))
def test_any_output_is_graded(solution):
    found = grade(solution, REFERENCE)
    assert found.total_cells == 6
    assert 0 <= found.correct_cells <= 6
    assert found.solved == (found.correct_cells == 6)
    assert found.parsed == (found.prediction is not None)
    assert found.parsed or found == NOTHING
    assert found.prediction is None or found.prediction.isascii()


plain = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_right_grid_is_solved_however_it_is_written(data):
    columns = data.draw(st.lists(plain.filter(lambda name: name != "House"), min_size=1, max_size=4, unique=True))
    houses = data.draw(st.lists(st.lists(plain, min_size=len(columns), max_size=len(columns)), min_size=1, max_size=4))
    record = {
        "id": "any",
        "size": f"{len(houses)}*{len(columns)}",
        "puzzle": data.draw(plain),
        "solution": {"header": ["House", *columns], "rows": [[str(n), *cells] for n, cells in enumerate(houses)]},
    }
    spaces, before, after = data.draw(st.tuples(st.sampled_from([" ", "\t", "\n", ""]), plain, plain))
    table = {
        f"House {number}": {
            column: data.draw(st.sampled_from([f"{spaces}{cell}", [cell], cell]))
            for column, cell in zip(columns, cells, strict=True)
        }
        for number, cells in enumerate(houses, start=1)
    }
    written = json.dumps(
        {"solution": table}, indent=data.draw(st.none() | st.integers(0, 4)), ensure_ascii=data.draw(st.booleans())
    )
    reference = read(record, 0).reference or ""
    found = grade(f"{before}{written}}}{after}", reference)
    # in JSON, a line feed in a cell is written as \n, so removing line feeds keeps it
    assert (found.solved, found.total_cells) == (True, len(houses) * len(columns))
    assert grade(f'{{"solution": {found.prediction}}}', reference) == found


@pytest.mark.parametrize(
    "unit", ["{", "}", "{}", '{"solution": ', "[", '"', "\\", "\n", '{"solution": {}} ', '{"a": [', "1", "é{\u2028"]
)
def test_ten_megabytes_do_not_hang(unit):
    began = time.process_time()
    grade(unit * (10_000_000 // len(unit)), REFERENCE)
    assert time.process_time() - began < 10  # 0.01 to 2.5 s on one EPYC core


def test_figures():
    def graded(size: str, correct: int, total: int, parsed: bool = True) -> tuple[str, Grade]:
        return size, Grade(parsed, "{}" if parsed else None, correct, total, correct == total)

    grades = [graded("2*2", 4, 4), graded("2*2", 0, 4, parsed=False), graded("4*2", 8, 8), graded("9*9", 8, 81)]
    assert figures(iter(grades)) == Figures(
        puzzles=4,
        puzzle_accuracy=50,
        cell_accuracy=20 / 97 * 100,
        no_answer=25,
        puzzle_accuracy_by={
            "easy": 50,
            "hard": 100,
            "small": pytest.approx(200 / 3),
            "2*2": 50,
            "4*2": 100,
            "9*9": 0,
        },
    )
    with pytest.raises(ValueError, match="no puzzle was graded"):
        figures([])


def test_the_groups_partition_all_sizes():
    sizes = Counter(f"{houses}*{columns}" for houses in range(2, 7) for columns in range(2, 7))
    for names in (("easy", "hard"), ("small", "medium", "large", "xl")):
        assert Counter(size for name in names for size in GROUPS[name]) == sizes


@official
def test_the_prompt_equals_the_official_one():
    (record,) = [each for each in rows_of("zebra_puzzles_gold.jsonl") if each["id"] == "lgp-test-5x6-16"]
    assert read(record, 0).query == (BENCH / "prompt_example.txt").read_text(encoding="utf-8")


@official
def test_all_1000_puzzles_are_solved_by_their_own_solution(references):
    assert len(references) == 1000
    for reference in references.values():
        solution = json.loads(reference)
        columns = solution["header"][1:]
        table = {f"House {cells[0]}": dict(zip(columns, cells[1:], strict=True)) for cells in solution["rows"]}
        assert grade(answer(table), reference).solved


@official
@pytest.mark.parametrize(
    ("model", "held", "published"),
    [
        ("Llama-3.1-405B-Inst@sambanova", 242, 224),
        ("Llama-3.1-405B-Inst@hyperbolic", 16, 16),
        ("Meta-Llama-3.1-70B-Instruct", 29, 0),
    ],
)
def test_official_outputs(references, model, held, published):
    """Every output has its expected grade and official label, and the figures equal the score board to two decimals."""
    labels = {}
    for item in rows_of("official_item_labels_53models.jsonl"):
        labels[item["id"]] = True if model in item["correct"] else False if model in item["incorrect"] else None
    expected = [each for each in rows_of("expected_grades.jsonl") if each["model"] == model]
    outputs = rows_of(f"outputs_{model.replace('@', '_at_')}.jsonl")
    grades = [(row["size"], grade(row["output"], references[row["id"]])) for row in outputs]
    assert len(grades) == len(expected) == held
    compared = 0
    for row, hope, (_, found) in zip(outputs, expected, grades, strict=True):
        assert [found.parsed, found.correct_cells, found.total_cells, found.solved] == [
            hope[name] for name in ("parsed", "correct_cells", "total_cells", "solved")
        ], row["id"]
        if found.parsed and labels[row["id"]] is not None:
            compared += 1
            assert found.solved == labels[row["id"]], row["id"]
    assert compared == sum(found.parsed for _, found in grades)
    if published:
        board = json.loads((BENCH / "published_vs_held.json").read_text(encoding="utf-8"))[model]["published"]
        assert board == {**board, **as_published(figures(grades[:published]), board)}


def as_published(found: Figures, board: dict) -> dict[str, str]:
    """The figures in the form of a score board, for those columns that the board has."""
    named = {"Puzzle Acc": found.puzzle_accuracy, "Cell Acc": found.cell_accuracy, "No answer": found.no_answer}
    for name in GROUPS:
        label = f"{name.upper() if name == 'xl' else name.capitalize()} Puzzle Acc"
        if label in board:
            named[label] = found.puzzle_accuracy_by[name]
    return {label: f"{value:.2f}" for label, value in named.items()}


@official
@pytest.mark.parametrize(("board", "models"), [("2cc34df7", 46), ("77d016f4", 38), ("8c1485ed", 52)])
def test_official_score_boards_from_the_labels(board, models):
    """All figures except the cells', for every model whose 1,000 labels are published."""
    sizes = {each["id"]: each["size"] for each in rows_of("zebra_puzzles_gold.jsonl")}
    labelled: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for item in rows_of("official_item_labels_53models.jsonl"):
        for name, solved in (("correct", True), ("incorrect", False)):
            for model in item[name]:
                labelled[model][item["id"]] = solved
    compared = 0
    for published in json.loads((BENCH / f"scoreboard_{board}.json").read_text(encoding="utf-8")):
        labels = labelled.get(published["Model"])
        if labels is None or published["Mode"] != "greedy" or published["Total Puzzles"] != 1000:
            continue
        compared += 1
        found = figures(
            (size, Grade(puzzle in labels, None, 0, 1, labels.get(puzzle, False))) for puzzle, size in sizes.items()
        )
        ours = as_published(found, published)
        del ours["Cell Acc"]
        assert len(ours) == (8 if "XL Puzzle Acc" in published else 4)
        assert published == {**published, **ours}
    assert compared == models
