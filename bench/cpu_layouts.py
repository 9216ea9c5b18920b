"""Measure how a CPU's cores are best shared out for a training: ranks, threads, number format, ZeRO stage.

    python bench/cpu_layouts.py [--model .bolt/smollm2/instruct] [--steps 6] [--out FILE.jsonl]

Each layout trains the same rows (SmolLM2's LongCoT lengths: 60 to 130 words) with the project's own trainer, and its
tokens per second are those of the steps after the first. `make demo-smollm2` writes the default model's folder. The
line `chosen` is what a training without `ranks` and `bf16` uses on this machine.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from bench.training import write_random_rows
from infra.processes.devices import this_machine
from infra.processes.torchrun import launch, metrics_path
from infra.training.config import SftConfig
from infra.training.switches import ranks_of, settled

BATCH = 8
SENTENCE = "the sum of two numbers is found by adding one after another until nothing is left to count"


def speed(model: Path, data: Path, ranks: int, folder: Path, **settings: Any) -> float:
    """Tokens per second, the median over all steps but the first."""
    folder.mkdir()
    config = SftConfig(
        model=model,
        data=(data,),
        output=folder / "model",
        epochs=1,
        learning_rate=1e-5,
        batch=BATCH,
        micro_batch=BATCH // ranks,
        max_length=512,
        checkpoint_minutes=1e6,
        **settings,
    )
    launch("infra.training.sft", config, ranks=ranks, log_path=folder / "train.log", timeout_s=1800)
    lines = map(json.loads, metrics_path(folder / "train.log").read_text().splitlines())
    return float(statistics.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:]))


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".bolt" / "smollm2" / "instruct")
    parser.add_argument("--steps", type=int, default=6)
    given = parser.parse_args()
    cores, found = len(os.sched_getaffinity(0)), {}
    layouts: dict[str, tuple[int, dict[str, Any]]] = {
        "one rank, bf16": (1, {"zero_stage": 0, "bf16": True}),
        "one rank, float32": (1, {"zero_stage": 0, "bf16": False}),
        f"{cores} ranks, bf16": (cores, {"zero_stage": 0, "bf16": True}),
        f"{cores} ranks, ZeRO-2, bf16": (cores, {"zero_stage": 2, "bf16": True}),
    }
    with tempfile.TemporaryDirectory(prefix="bolt-bench-") as place:
        data = Path(place, "rows.parquet")
        write_random_rows(data, given.model, SENTENCE.split(), BATCH * given.steps, 130)
        for name, (ranks, settings) in layouts.items():
            folder = Path(place, name.replace(" ", "-"))
            found[name] = round(speed(given.model, data, ranks, folder, **settings))
            print(f"{name}: {found[name]} tokens/s", flush=True)
    plain = SftConfig(model=given.model, data=(data,), output=Path("model"), batch=BATCH, micro_batch=BATCH)
    told = json.loads((given.model / "config.json").read_text())
    bf16 = settled(plain, told, this_machine()).bf16
    chosen = f"{ranks_of(plain)} rank(s), {'bf16' if bf16 else 'float32'}"
    result = {"bench": "cpu_layouts", "tokens_per_second": found, "chosen": chosen, **surroundings()}
    report(result, given.out)


if __name__ == "__main__":
    main()
