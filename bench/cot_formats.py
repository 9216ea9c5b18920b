"""Measure the parsing of responses, in MB/s per format, against a plain non-greedy regex in the same run.

    python bench/cot_formats.py [--rounds 5] [--megabytes 8]

Texts are made in memory from a seed. Real texts from the folder beside the repository are measured too, if they exist.
Prints one line of JSON. `baseline` is `re.search(r"<a>(.*?)</a>\\s*<b>(.*?)</b>", DOTALL)`, which splits a text but
neither counts delimiters nor reports violations. For qwq it is a regex that searches for one heading from the end, and
so reads little.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from cot_formats import FORMATS, TAGGED, qwq
from cot_formats.actions import find_actions

REAL = {
    "still2": ("icl_qwen2.5-32b_begin_of_thought", "sky-t1_begin_of_thought"),
    "r1": ("other_think", "qwen3_think", "qwq32b_think", "r1_think"),
    "marco": ("marco-o1_thought_output",),
    "qwq": ("qwq_preview_freeform",),
}
TEXT = "wait the answer is so we need to find x = 3 , check that a < b and 7 > 2 . alternatively try another way"


def baseline(name: str) -> Callable[[str], object]:
    """The obvious regex for a format."""
    if name == "qwq":
        pattern = r"^(.*)\n\n\*\*Final Answer\*\*\s*(.*)$"
    else:
        tags = TAGGED[name].tags
        pattern = r"{}(.*?){}\s*".format(*map(re.escape, tags))
        pattern += r"{}(.*?){}".format(*map(re.escape, tags[2:])) if len(tags) == 4 else r"(.*)"
    return re.compile(pattern, re.DOTALL).search


def made(name: str, size: int) -> list[str]:
    """Responses of 2 to 60 thousand characters, paragraphs of prose, `size` characters in all."""
    rng, words = random.Random(0), TEXT.split()
    texts, total = [], 0
    while total < size:
        paragraphs = [" ".join(rng.choices(words, k=60)) for _ in range(rng.randint(8, 220))]
        texts.append(FORMATS[name].render("\n\n".join(paragraphs), paragraphs[0]))
        total += len(texts[-1])
    return texts


def hostile(name: str, size: int) -> list[str]:
    """A text of delimiters alone, and a text of delimiters that lack their last character."""
    marks = qwq.HEADINGS if name == "qwq" else FORMATS[name].render("t", "s").split()
    unit = "".join(marks)
    cut = "".join(mark[:-1] for mark in marks)
    return [unit * (size // len(unit)), cut * (size // len(cut))]


def real(name: str) -> list[str]:
    """Real responses in this format; empty if the folder beside the repository does not exist."""
    folder = ROOT.parent / "shared" / "bench" / "longcot"
    paths = [folder / f"{file}.jsonl" for file in REAL.get(name, ())]
    return [json.loads(line)["response"] for path in paths if path.is_file() for line in path.open(encoding="utf-8")]


def speed(parse: Callable[[str], object], texts: list[str], rounds: int) -> float | None:
    """Megabytes (UTF-8) per second, best of `rounds`; None without texts."""
    size = sum(len(text.encode()) for text in texts)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for text in texts:
            parse(text)
        best = min(best, time.perf_counter() - start)
    return round(size / best / 1e6, 1) if texts else None


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=8)
    given = parser.parse_args()
    size = given.megabytes * 1_000_000
    table = []
    for name, module in FORMATS.items():
        for corpus, texts in (("made", made(name, size)), ("real", real(name)), ("hostile", hostile(name, size // 8))):
            # On hostile texts the baseline matches at once or runs almost forever, so that it is left out.
            other = None if corpus == "hostile" else speed(baseline(name), texts, given.rounds)
            row = {"format": name, "corpus": corpus, "texts": len(texts)}
            table.append({**row, "parse_mb_s": speed(module.parse, texts, given.rounds), "baseline_mb_s": other})
    result = {
        "bench": "cot_formats",
        "rounds": given.rounds,
        "find_actions_mb_s": speed(find_actions, made("r1", size // 8), given.rounds),
        "table": [row for row in table if row["texts"]],
        **surroundings(),
    }
    report(result, given.out)


if __name__ == "__main__":
    main()
