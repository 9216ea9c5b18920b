"""Measure DPO: seconds per step against TRL's DPOTrainer with its defaults on the same pairs.

    python bench/dpo.py [--mix nano] [--pairs 256] [--epochs 2] [--ranks N] [--out FILE.jsonl]

The reference policy is the model that is trained. Ours computes its log-probabilities once; their time is counted. Both
trainers have the same learning rate, beta, pairs per step, epochs (the paper's two) and seed. TRL's defaults are 8
pairs per device, the reference policy in memory and computed in every step, bf16 autocast and gradient checkpointing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import bench_parser, report, surroundings
from bench.training import MIXES, compared, ours, theirs, write_rows
from infra.training.config import DpoConfig

AIM = 1.3


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--mix", choices=[*MIXES], default="nano")
    parser.add_argument("--pairs", type=int, default=256, help="a multiple of 16")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        path, model = write_rows(given.mix, given.pairs, folder)
        config = DpoConfig(
            model=model,
            reference=model,
            data=(path,),
            output=folder / "ours",
            epochs=given.epochs,
            learning_rate=1e-5,
            batch=16,
            micro_batch=8,
            max_length=MIXES[given.mix],
            zero_stage=0,
        )
        our, their = ours("dpo", config, given.ranks, folder), theirs("dpo", config, folder)
    steps = our["report"]["steps"]
    result = {
        "bench": "dpo",
        "mix": given.mix,
        "pairs": given.pairs,
        "seconds_per_step": round(our["seconds"] / steps, 3),
        "trl_seconds_per_step": round(their["seconds"] / steps, 3),
        "reference_seconds": our["report"]["reference_seconds"],
        **compared(our, their, AIM),
        **surroundings(),
    }
    report(result, given.out)


if __name__ == "__main__":
    main()
