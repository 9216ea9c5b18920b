"""ZebraLogic: 1,000 logic grid puzzles of 25 sizes, prompted and graded as in ZeroEval.

Source of the rules: WildEval/ZeroEval (Apache-2.0), src/evaluation/zebra_grid_eval.py and eval_utils.py, and its
published score boards, whose figures the tests reproduce. Where that program would stop with an error (a cell that is a
number, a house that is a string, JSON nested too deep), the answer counts as wrong here and grading continues.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from evals.problem import Problem, are_texts, bad_field, text_field
from evals.templates import template

GROUPS: dict[str, frozenset[str]] = {
    name: frozenset(sizes.split())
    for name, sizes in {
        "easy": "2*2 2*3 2*4 2*5 2*6 3*2 3*3",
        "hard": "3*4 3*5 3*6 4*2 4*3 4*4 4*5 4*6 5*2 5*3 5*4 5*5 5*6 6*2 6*3 6*4 6*5 6*6",
        "small": "2*2 2*3 2*4 2*5 2*6 3*2 3*3 4*2",
        "medium": "3*4 3*5 3*6 4*3 4*4 5*2 6*2",
        "large": "4*5 4*6 5*3 5*4 6*3",
        "xl": "5*5 5*6 6*4 6*5 6*6",
    }.items()
}
"""ZeroEval's groups of grid sizes (houses * attributes): easy and hard partition all sizes, and so do small to xl."""

HIDDEN = "___"  # stands for every cell in the public data set allenai/ZebraLogicBench
_PARTS = re.compile(r"\{(puzzle|skeleton)\}")
_BRACES = re.compile(r"\{+|\}+")

Grid = dict[str, dict[str, str]]  # house -> column -> cell


@dataclass(frozen=True)
class Grade:
    """The grade of one answer to a puzzle."""

    parsed: bool
    """Whether there is an answer, that is, readable JSON with a `solution`; if not, the puzzle counts as unanswered."""
    prediction: str | None
    """JSON text of the grid as compared: in lower case, with null for a cell without text; None if not parsed."""
    correct_cells: int
    total_cells: int
    solved: bool
    """Whether every cell is right."""


@dataclass(frozen=True)
class Figures:
    """ZeroEval's figures, in percent, not rounded."""

    puzzles: int
    """Number of graded puzzles, unanswered ones included; all shares but the cells' are shares of these."""
    puzzle_accuracy: float
    cell_accuracy: float
    """Share of correct cells among all cells, those of unanswered puzzles included; so larger grids weigh more."""
    no_answer: float
    puzzle_accuracy_by: dict[str, float]
    """By the groups in `GROUPS`, then by grid size; only those that have puzzles."""


def read(record: Mapping[str, Any], row: int) -> Problem:
    """Read a puzzle in the authors' layout: id, size, puzzle, solution {header, rows}.

    The problem's `reference` is the solution as JSON text.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    problem_id, puzzle, size = (text_field(record, name, row) for name in ("id", "puzzle", "size"))
    solution = record.get("solution")
    header = solution.get("header") if isinstance(solution, dict) else None
    if not _texts(header) or header[:1] != ["House"] or not 2 <= len(header) == len(set(header)):
        raise bad_field(row, "solution.header", "House and the names of the columns, without duplicates", header)
    rows = solution["rows"] if isinstance(solution, dict) and isinstance(solution.get("rows"), list) else []
    if not rows or not all(_texts(cells) and len(cells) == len(header) for cells in rows):
        raise bad_field(row, "solution.rows", f"a list of houses with {len(header)} non-empty strings each", rows)
    if any(HIDDEN in cells for cells in rows):
        raise bad_field(
            row, "solution.rows", "the cells, which the public data set hides: use a copy with solutions", rows
        )
    if size != f"{len(rows)}*{len(header) - 1}":
        raise bad_field(row, "size", f"{len(rows)}*{len(header) - 1}, as in the solution", size)
    reference = {"header": header, "rows": rows}
    return Problem(
        problem_id=problem_id,
        query=_prompt(puzzle, _grid(reference)),
        reference=json.dumps(reference, ensure_ascii=False),
        category=size,
    )


def grade(solution: str | None, reference: str) -> Grade:
    """Compare a model's solution with the puzzle's `reference`. Grades any text, in time linear in its length."""
    gold = _grid(json.loads(reference))
    table = (_last_object(solution or "") or {}).get("solution")
    total = sum(len(cells) for cells in gold.values())
    if table is None:
        return Grade(parsed=False, prediction=None, correct_cells=0, total_cells=total, solved=False)
    found = {house: {column: _cell(table, house, column) for column in gold[house]} for house in gold}
    correct = sum(found[house][column] == _plain(gold[house][column]) for house in gold for column in gold[house])
    return Grade(True, json.dumps(found), correct, total, correct == total)


def figures(graded: Iterable[tuple[str, Grade]]) -> Figures:
    """The figures of graded puzzles, each given with its grid size. Raises `ValueError` if there are none."""
    by_size: defaultdict[str, list[Grade]] = defaultdict(list)
    for size, each in graded:
        by_size[size].append(each)
    grades = [each for of_size in by_size.values() for each in of_size]
    if not grades:
        raise ValueError("no puzzle was graded, so there are no figures")
    groups = {**GROUPS, **{size: frozenset((size,)) for size in sorted(by_size)}}
    members = {
        name: [each for size in sizes & by_size.keys() for each in by_size[size]] for name, sizes in groups.items()
    }
    return Figures(
        puzzles=len(grades),
        puzzle_accuracy=_percent(sum(each.solved for each in grades), len(grades)),
        cell_accuracy=_percent(sum(each.correct_cells for each in grades), sum(each.total_cells for each in grades)),
        no_answer=_percent(sum(not each.parsed for each in grades), len(grades)),
        puzzle_accuracy_by={
            name: _percent(sum(each.solved for each in found), len(found)) for name, found in members.items() if found
        },
    )


def _percent(part: int, whole: int) -> float:
    return (
        part / whole * 100
    )  # in ZeroEval's order of operations: 174 of 320 is 54.37 or 54.38, depending on the last bit


def _texts(value: Any) -> TypeGuard[list[str]]:
    """Whether it is a list of strings, none of them blank."""
    return are_texts(value) and all(each.strip() for each in value)


def _grid(solution: Mapping[str, Any]) -> Grid:
    """The authors' {header, rows} by house and column. Houses are numbered by position, as in ZeroEval."""
    columns = solution["header"][1:]
    return {
        f"House {number}": dict(zip(columns, cells[1:], strict=True))
        for number, cells in enumerate(solution["rows"], start=1)
    }


def _prompt(puzzle: str, grid: Grid) -> str:
    """The official prompt: an example, the puzzle, and a JSON skeleton of the answer with its houses and columns."""
    blank = {house: dict.fromkeys(cells, HIDDEN) for house, cells in grid.items()}
    skeleton = json.dumps({"reasoning": HIDDEN, "solution": blank}, indent=4, ensure_ascii=False)
    parts = {"puzzle": puzzle, "skeleton": skeleton}
    return _PARTS.sub(lambda part: parts[part[1]], template("evals/prompts/zebralogic.md"))


def _last_object(text: str) -> dict[str, Any] | None:
    """The last outermost {...} of a text, parsed as JSON without its line feeds; None if it is no JSON.

    As in ZeroEval, braces are counted wherever they are, also inside JSON strings, and only the last pair is tried. So
    an opening brace that is never closed hides everything after it.
    """
    depth = start = end = begun = 0
    for run in _BRACES.finditer(text):
        length = run.end() - run.start()
        if text[run.start()] == "{":
            begun = begun if depth else run.start()
            depth += length
        elif 0 < depth <= length:
            start, end, depth = begun, run.start() + depth, 0
        else:
            depth = max(0, depth - length)
    try:
        found: dict[str, Any] = json.loads(text[start:end].replace("\n", ""))
    except (ValueError, RecursionError):  # no JSON, a number of over 4,300 digits, nested too deep
        return None
    return found


def _cell(table: Any, house: str, column: str) -> str | None:
    """A cell of the answer's table as compared; the first value of a list; None if there is no text."""
    row = table.get(house) if isinstance(table, dict) else None
    value = row.get(column) if isinstance(row, dict) else None
    if isinstance(value, list):
        value = value[0] if value else None
    return _plain(value) or None if isinstance(value, str) else None


def _plain(cell: str) -> str:
    return cell.lower().strip()
