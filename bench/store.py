"""Measure the cost of the artifact store: our tables against bare pyarrow.parquet, on local disk.

    python bench/store.py [--rows 40000] [--rounds 5] [--folder DIR] [--out FILE.jsonl]

Ours checks the schema, hashes every part, flushes to disk and writes a manifest. Reading verifies the sha256 of each
part first ("read, known" is a second read in the same process, which skips the hash). MB are 10^6 bytes of Arrow data
in memory. Both write the same batches and take turns. Figures are medians over the rounds.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import bench_parser, report, surroundings
from infra.settings import Settings
from infra.store import parts, store
from infra.store.schemas import RESPONSES
from infra.store.store import Store
from infra.store.tables import GROUP_ROWS, Provenance, scan, write_table

BATCH_ROWS = GROUP_ROWS  # so that bare Parquet gets the same row groups


def batches(rows: int) -> list[pa.RecordBatch]:
    """Made-up responses: about 4 kB of words per row, as compressible as prose."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3_000)]

    def row(i: int) -> dict[str, Any]:
        thoughts, solution = (" ".join(rng.choices(words, k=count)) for count in (250, 80))
        return {
            "query_id": f"{i // 8:016x}",
            "sample": i % 8,
            "example_ids": ["a", "b", "c"],
            "seed": i,
            "text": thoughts + solution,
            "thoughts": thoughts,
            "solution": solution,
            "violations": [],
            "finish_reason": "stop",
            "prompt_tokens": 900,
            "completion_tokens": 430,
            "thought_tokens": 330,
            "solution_tokens": 100,
        }

    return [
        pa.RecordBatch.from_pylist([row(i) for i in range(start, min(rows, start + BATCH_ROWS))], schema=RESPONSES)
        for start in range(0, rows, BATCH_ROWS)
    ]


def drain(stream: Iterator[pa.RecordBatch]) -> int:
    return sum(batch.num_rows for batch in stream)


def contenders(folder: Path, data: list[pa.RecordBatch]) -> dict[str, Callable[[], Any]]:
    """The measured actions by name; each write comes before the reads of what it wrote."""
    artifacts = Store.open(Settings(store=str(folder / "ours")))
    bare = folder / "bare.parquet"
    refs: list[Any] = []

    def write_ours() -> None:
        refs[:] = [write_table(artifacts, "bench", "k", RESPONSES, data, Provenance())]

    def write_bare() -> None:
        with pq.ParquetWriter(bare, RESPONSES, compression="zstd") as writer:
            for batch in data:
                writer.write_batch(batch, row_group_size=GROUP_ROWS)

    def read_cold() -> None:
        parts._memo.clear()
        drain(scan(artifacts, refs[0]))

    def read_bare() -> None:
        with pq.ParquetFile(bare) as file:
            drain(file.iter_batches(batch_size=10_000))

    return {
        "write, ours": write_ours,
        "write, bare": write_bare,
        "read, ours": read_cold,
        "read, known": lambda: drain(scan(artifacts, refs[0])),
        "read, bare": read_bare,
    }


def measure(rows: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians in MB/s, and the cost of the store relative to bare Parquet."""
    store.SETTLED_S = -1.0  # a new file counts as settled, so that the second read is a known one
    data = batches(rows)
    size = sum(batch.nbytes for batch in data)
    actions = contenders(folder, data)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    speed = {name: size / 1e6 / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "bench": "store",
        "rows": rows,
        "data_mb": round(size / 1e6, 1),
        "file_mb": round((folder / "bare.parquet").stat().st_size / 1e6, 1),
        "rounds": rounds,
        "mb_per_s": {name: round(value, 1) for name, value in speed.items()},
        "spread": {
            name: round((max(taken) - min(taken)) / statistics.median(taken), 2) for name, taken in seconds.items()
        },
        "ours_of_bare": {
            "write": round(speed["write, ours"] / speed["write, bare"], 3),
            "read": round(speed["read, ours"] / speed["read, bare"], 3),
            "read, known": round(speed["read, known"] / speed["read, bare"], 3),
        },
    }


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=given.folder) as folder:
        result = measure(given.rows, given.rounds, Path(folder)) | {"pyarrow": pa.__version__} | surroundings()
    report(result, given.out)
    print(f"\n{'':14}{'MB/s':>10}{'spread':>10}   of bare")
    for name, value in result["mb_per_s"].items():
        verb = name.split(",")[0]
        print(
            f"{name:14}{value:10.1f}{result['spread'][name]:10.2f}   {value / result['mb_per_s'][f'{verb}, bare']:.2f}"
        )


if __name__ == "__main__":
    main()
