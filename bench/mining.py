"""Measure query mining on made-up queries: rows per second, and peak memory as the table grows tenfold.

    python bench/mining.py [--rows 1000000] [--languages en] [--baseline PYTHON] [--folder DIR] [--out FILE.jsonl]

Half of the queries are from templates, half are random words of a skewed vocabulary. 10 % are exact copies, 5 % near
copies (one word in forty changed, at least one), 0.5 % copies of 1,000 made-up problems. All steps run: collect, clean
(language, exact and near-duplicates), decontaminate, draw. Each size has a process of its own, for its peak memory.

`--baseline` is the path of a Python with datatrove[io,processing] 0.10.1, orjson and spacy (they are no dependencies of
this project). The same rows go through its JSON reader, MinHash deduplication (four steps, 3-grams, 20 buckets of 6)
and JSON writer, on one core like ours. distilabel is not compared: its MinHash step is datasketch, which works on one
row at a time, in memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import bench_parser, report, surroundings
from infra.settings import Settings
from infra.steps.step import Job, Plan
from infra.store.manifest import Provenance, Ref, read_manifest
from infra.store.store import Store
from tasks.queries.clean import CleanConfig, clean_queries
from tasks.queries.collect import collect_queries
from tasks.queries.decontaminate import DecontaminateConfig, decontaminate, find_contaminated, read_held_out
from tasks.queries.distinct import drop_duplicates
from tasks.queries.draw import DrawConfig, subsample
from tasks.queries.sources import Source

TEMPLATES = (
    "Write a {0} that takes a {1} and returns the {2} of every {3}, then explain how the {4} changes when {5} is {6}.",
    "What is the difference between {0} and {1} when the {2} of a {3} depends on {4}?",
    "A {0} has {1} and {2}. If the {3} is {4}, how much {5} is left after {6}?",
    "Please summarise the following text about {0} in the style of {1}: {2} {3} {4} {5} {6} {7} {8}",
)
BASELINE = """
import sys
from datatrove.executor import LocalPipelineExecutor as Run
from datatrove.pipeline.dedup import (MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter,
                                      MinhashDedupSignature)
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
class Words: word_tokenize = staticmethod(str.split)
minhash.load_word_tokenizer = lambda language: Words  # spaCy's, its own, is slower
source, out = sys.argv[1:]
def read(): return JsonlReader(source, glob_pattern="queries.jsonl", text_key="query")
config = MinhashConfig(n_grams=3, num_buckets=20, hashes_per_bucket=6)
stages = [
    [read(), MinhashDedupSignature(out + "/signatures", config)],
    [MinhashDedupBuckets(input_folder=out + "/signatures", output_folder=out + "/buckets", config=config)],
    [MinhashDedupCluster(input_folder=out + "/buckets", output_folder=out + "/remove", config=config)],
    [read(), MinhashDedupFilter(input_folder=out + "/remove"), JsonlWriter(out + "/kept", compression=None)],
]
for number, stage in enumerate(stages):
    Run(pipeline=stage, tasks=20 if number == 1 else 1, workers=1, logging_dir=f"{out}/logs/{number}").run()
"""


def texts(rows: int, problems: list[str], seed: int = 0) -> Iterator[str]:
    """`rows` made-up queries; copies are made of the last 10,000 new ones."""
    rng = random.Random(seed)
    syllables = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 3))) for _ in range(400)]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(20_000)]
    common = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not"]
    recent: list[str] = []

    def word() -> str:
        return rng.choice(common) if rng.random() < 0.4 else words[int(rng.paretovariate(0.6)) % len(words)]

    for _ in range(rows):
        kind = rng.random()
        if recent and kind < 0.10:
            yield rng.choice(recent)
        elif recent and kind < 0.15:
            copy = rng.choice(recent).split()
            for _ in range(max(1, len(copy) // 40)):
                copy[rng.randrange(len(copy))] = word()
            yield " ".join(copy)
        elif kind < 0.155:
            yield rng.choice(problems).upper()
        else:
            if rng.random() < 0.5:
                text = rng.choice(TEMPLATES).format(*(word() for _ in range(9)))
            else:
                text = " ".join(word() for _ in range(rng.randint(8, 80)))
            recent.append(text)
            if len(recent) > 10_000:
                recent[rng.randrange(10_000)] = recent.pop()
            yield text


def written(path: Path, lines: Iterator[str]) -> None:
    """Write the lines as queries, one JSON object each."""
    with path.open("w") as file:
        file.writelines(json.dumps({"query": line}) + "\n" for line in lines)


def mine(folder: Path, languages: tuple[str, ...]) -> dict[str, Any]:
    """Run all steps on `folder`/queries.jsonl: their seconds, their counts, and the peak memory of this process."""
    settings = Settings(store=str(folder / "store"), work_dir=folder)
    seconds: dict[str, float] = {}
    counts: dict[str, Any] = {}

    def do(task: Any, name: str, **arguments: Any) -> Ref:
        began = time.perf_counter()
        made: Ref = task.task.fn(Job(Plan(step=name, key="k", provenance=Provenance()), settings, arguments))
        seconds[name] = round(time.perf_counter() - began, 2)
        counts[name] = read_manifest(Store.open(settings), made)["counts"]
        return made

    rule = DecontaminateConfig(held_out=(Source(path=str(folder / "problems.jsonl")),))
    queries = do(collect_queries, "collected", source=Source(path=str(folder / "queries.jsonl")))
    clean = CleanConfig(languages=languages)
    usable = do(clean_queries, "cleaned", config=clean, sources=(queries,))
    queries = do(drop_duplicates, "distinct", near_duplicates=clean.near_duplicates, queries=(usable,))
    held_out = do(read_held_out, "held-out", held_out=rule.held_out)
    found = do(find_contaminated, "contaminated", config=rule, held_out=held_out, queries=queries)
    queries = do(decontaminate, "decontaminated", queries=queries, contaminated=(found,))
    do(subsample, "queries", config=DrawConfig(limit=max(1, queries.rows // 2)), queries=queries)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"seconds": seconds, "counts": counts, "peak_mib": peak}


def measure(rows: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one size, in processes of its own."""
    folder.mkdir()
    problems = [*texts(1_000, ["a problem of its own"], seed=1)]
    written(folder / "problems.jsonl", iter(problems))
    written(folder / "queries.jsonl", texts(rows, problems))
    command = [sys.executable, __file__, "--worker", str(folder), "--languages", *given.languages]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    whole = sum(found["seconds"].values())
    row = {"rows": rows, **found, "rows_per_second": round(rows / whole)}
    if given.baseline:
        began = time.perf_counter()
        command = [given.baseline, "-c", BASELINE, str(folder), str(folder / "datatrove")]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        took = time.perf_counter() - began
        with (folder / "datatrove" / "kept" / "00000.jsonl").open() as kept:
            row["datatrove"] = {
                "seconds": round(took, 2),
                "rows_per_second": round(rows / took),
                "kept": sum(1 for _ in kept),
            }
    return row


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--languages", nargs="*", default=["en"], help="no value turns the language filter off")
    parser.add_argument("--baseline", help="path of a Python that has datatrove")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(mine(given.worker, tuple(given.languages))))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        sizes = [measure(rows, given, Path(folder) / str(rows)) for rows in (given.rows // 10, given.rows)]
    ratio = round(sizes[1]["peak_mib"] / sizes[0]["peak_mib"], 3)
    result = {"bench": "mining", "sizes": sizes, "peak_ratio": ratio, **surroundings()}
    report(result, given.out)


if __name__ == "__main__":
    main()
