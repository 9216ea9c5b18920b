"""Measure SFT: tokens per second (padding not counted), against TRL's SFTTrainer with its defaults on the same rows.

    python bench/sft.py [--mixes nano longcot] [--rows 512 64] [--ranks N] [--out FILE.jsonl]

Two length mixes: worked nano problems, and LongCoT's (log-normal, 200 to 8,000 tokens), both with the nano model. Both
trainers have the same learning rate, rows per step, epochs and seed, and see each row once. TRL's defaults are 8 rows
per device, random batches with padding, bf16 autocast and gradient checkpointing, in one process with all cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import bench_parser, report, surroundings
from bench.training import MIXES, compared, ours, theirs, write_rows
from infra.training.config import SftConfig

AIM = 1.5


def measure(mix: str, rows: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Both trainers on one length mix."""
    path, model = write_rows(mix, rows, folder)
    config = SftConfig(
        model=model,
        data=(path,),
        output=folder / "ours",
        epochs=1,
        learning_rate=1e-4,
        batch=16,
        micro_batch=8,
        max_length=MIXES[mix],
        zero_stage=0,
    )
    our, their = ours("sft", config, ranks, folder), theirs("sft", config, folder)
    tokens = our["report"]["tokens"]
    return {
        "mix": mix,
        "rows": rows,
        "tokens": tokens,
        "tokens_per_second": round(tokens / our["seconds"]),
        "trl_tokens_per_second": round(tokens / their["seconds"]),
        **compared(our, their, AIM),
    }


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--mixes", nargs="*", choices=[*MIXES], default=[*MIXES])
    parser.add_argument("--rows", nargs="*", type=int, default=[512, 64], help="for each mix, a multiple of 16")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    found = []
    for mix, rows in zip(given.mixes, given.rows, strict=True):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found.append(measure(mix, rows, given.ranks, Path(folder)))
    result = {"bench": "sft", "mixes": found, **surroundings()}
    report(result, given.out)


if __name__ == "__main__":
    main()
