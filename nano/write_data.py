"""Write the data files of the nano world: `python -m nano.write_data` (seeded; the files are shipped).

examples/*.md: ten in-context examples. data/queries.jsonl: queries in the OpenAI messages layout, with a few duplicates
and easy ones for the miner to drop. data/queries-large.parquet: many more. data/dev.jsonl and data/test.jsonl: held-out
problems with their reference answers. data/teacher.jsonl: thoughts of a program that stands in for a stronger model, in
STILL-2's layout. data/hard.jsonl: other problems of the highest level with their answers, to explore.
data/answered.parquet: queries with their answers, for STILL-1.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cot_formats import still2
from nano.corpus import draw
from nano.families import FAMILIES
from nano.problem import Habits, Problem

HERE = Path(__file__).parent
HARD = (1, 2, 3)
LARGE, ANSWERED = 12_000, 4_800  # queries
TAUGHT, EXPLORED = 900, 1_200  # problems
DIFFICULTY = {0: 3, 1: 5, 2: 6, 3: 7}  # number of the paper's seven criteria that a problem counts as meeting, by level


def distinct(rng: random.Random, split: str, count: int, levels: tuple[int, ...] = HARD) -> list[Problem]:
    """`count` distinct problems of a split, from the families in turn; a small family may run out before the others.

    Raises:
        ValueError: the split has too few problems.
    """
    found: dict[str, Problem] = {}
    for turn in range(20 * count):
        problem = draw(rng, split, levels, list(FAMILIES)[turn % len(FAMILIES)])
        found.setdefault(problem.query, problem)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"split {split} has fewer than {count} distinct problems of the levels {levels}")


def steps_of(problem: Problem) -> int:
    """How many steps solve the problem: those of a writer who neither slips nor checks, after naming goal and plan."""
    worked = FAMILIES[problem.family].derive(problem, random.Random(0), Habits(slip=0, careful=False))
    return worked.thoughts.count(" .") - 2


def record(problem: Problem, *, held_out: bool) -> str:
    """A problem as a JSON line in the OpenAI messages layout; a held-out one with its answer and number of steps."""
    row = {
        "messages": [{"role": "user", "content": problem.query}],
        "topic": problem.family,
        "difficulty": DIFFICULTY[problem.level],
    }
    if held_out:
        row |= {"reference": problem.answer, "step_count": steps_of(problem)}
    return json.dumps(row)


def write_examples(rng: random.Random) -> None:
    """Write ten examples by a careful writer who slips, notices it, and reaches the right answer."""
    folder = HERE / "examples"
    for number, problem in enumerate(distinct(rng, "examples", 10, (1, 2)), 1):
        while True:
            worked = FAMILIES[problem.family].derive(problem, rng, Habits(0.2, careful=True, catch=1.0))
            if worked.answer == problem.answer and (number % 2 == 0 or "wait" in worked.thoughts):
                break
        front = f"---\ntopic: {problem.family}\nauthor: nano.write_data\nlicence: Apache-2.0\n---\n"
        body = (
            f"\n## Query\n\n{problem.query}\n\n## Thoughts\n\n{worked.thoughts}\n\n## Solution\n\n{worked.solution}\n"
        )
        (folder / f"{number:02d}-{problem.family}.md").write_text(front + body)


def taught(rng: random.Random, problem: Problem) -> str:
    """A problem as a JSON line in STILL-2's layout: a careful writer who slips, notices it, and reaches the answer."""
    while True:
        worked = FAMILIES[problem.family].derive(problem, rng, Habits(0.1, careful=True, catch=1.0))
        if worked.answer == problem.answer:
            break
    text = still2.render(worked.thoughts, worked.solution)
    return json.dumps({"question": problem.query, "combined_text": text, "domain": problem.family})


def further(queries: list[Problem], count: int) -> list[Problem]:
    """`count` more queries for stage 3, none of them in `queries`."""
    known = {problem.query for problem in queries}
    drawn = distinct(random.Random(20261121), "queries", len(queries) + 2 * count)
    return [problem for problem in drawn if problem.query not in known][:count]


def main() -> None:
    """Write all files."""
    rng = random.Random(20250207)
    write_examples(rng)
    queries = distinct(rng, "queries", 3000)
    easy = distinct(rng, "queries", 120, (0,))
    rows = [record(problem, held_out=False) for problem in [*queries, *easy, *rng.sample(queries, 60)]]
    rng.shuffle(rows)
    rows += [record(problem, held_out=False) for problem in further(queries, 1620)]
    (HERE / "data" / "queries.jsonl").write_text("\n".join(rows) + "\n")
    many = distinct(random.Random(20261130), "queries", LARGE)
    columns = {
        "query": [problem.query for problem in many],
        "topic": [problem.family for problem in many],
        "difficulty": [DIFFICULTY[problem.level] for problem in many],
    }
    pq.write_table(pa.table(columns), HERE / "data" / "queries-large.parquet", compression="zstd")
    asked = distinct(random.Random(20261201), "queries", ANSWERED)
    columns = {
        "query": [problem.query for problem in asked],
        "topic": [problem.family for problem in asked],
        "difficulty": [DIFFICULTY[problem.level] for problem in asked],
        "reference": [problem.answer for problem in asked],
        "step_count": [steps_of(problem) for problem in asked],
    }
    pq.write_table(pa.table(columns), HERE / "data" / "answered.parquet", compression="zstd")
    used = {problem.query for problem in [*queries, *easy]}
    others = [problem for problem in distinct(random.Random(20261129), "queries", 9000) if problem.query not in used]
    teacher, hard = others[:TAUGHT], [problem for problem in others[TAUGHT:] if problem.level == max(HARD)][:EXPLORED]
    lessons = [taught(random.Random(n), problem) for n, problem in enumerate(teacher)]
    (HERE / "data" / "teacher.jsonl").write_text("\n".join(lessons) + "\n")
    explored = [record(problem, held_out=True) for problem in hard]
    (HERE / "data" / "hard.jsonl").write_text("\n".join(explored) + "\n")
    for split, count in (("dev", 300), ("test", 510)):
        held_out = [record(problem, held_out=True) for problem in distinct(rng, split, count)]
        (HERE / "data" / f"{split}.jsonl").write_text("\n".join(held_out) + "\n")


if __name__ == "__main__":
    main()
