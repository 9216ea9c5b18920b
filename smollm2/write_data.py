"""Write the data files of the SmolLM2 world: `python -m smollm2.write_data` (seeded; the files are shipped).

data/queries.jsonl: queries for sampling, with the reference answers that their reward comes from. data/dev.jsonl and
data/test.jsonl: held-out problems. No problem is in two files. The worked examples are written by hand.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from smollm2.problems import FAMILIES, LEVELS, Problem, draw

HERE = Path(__file__).parent
COUNTS = {"queries": 1600, "dev": 128, "test": 256}
DIFFICULTY = {1: 5, 2: 6, 3: 7}  # number of the paper's seven criteria that a problem counts as meeting, by level


def distinct(rng: random.Random, split: str, count: int) -> list[Problem]:
    """`count` distinct problems of a split, from all families and levels in turn.

    Small families run out of problems, and the others then fill the rest.
    """
    kinds = [(family, level) for level in LEVELS for family in FAMILIES]
    found: dict[str, Problem] = {}
    for turn in range(50 * count):
        problem = draw(rng, split, *kinds[turn % len(kinds)])
        found.setdefault(problem.query, problem)
        if len(found) == count:
            break
    problems = list(found.values())
    rng.shuffle(problems)
    return problems


def record(problem: Problem) -> str:
    """A problem as a JSON line in the OpenAI messages layout."""
    row = {
        "messages": [{"role": "user", "content": problem.query}],
        "topic": problem.family,
        "difficulty": DIFFICULTY[problem.level],
        "reference": problem.answer,
    }
    return json.dumps(row)


def main() -> None:
    """Write all files."""
    rng = random.Random(20261128)
    for split, count in COUNTS.items():
        lines = [record(problem) for problem in distinct(rng, split, count)]
        (HERE / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
