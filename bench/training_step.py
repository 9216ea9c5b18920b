"""Measure what a training step costs around its training: data, launch, imports, save, check, publishing.

    python bench/training_step.py [--rows 400] [--rounds 3] [--baseline CHECKOUT] [--out FILE.jsonl]

The step is stage 2 of the nano world, on made-up LongCoT data of worked problems, with one epoch. `--baseline` is a
checkout of another commit (`git worktree add`), which takes turns with this one. The figures are medians, in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
INSIDE = ("imports", "process group", "rows", "model", "save", "check")


def step(rows: int, ranks: int, folder: Path) -> dict[str, float]:
    """Run the step once with the code that is first on `sys.path`: seconds by part, and in all."""
    import tasks.training.sft as sft
    import tasks.training.train as train
    from infra.serving.servers import Servers, ServingConfig
    from infra.serving.vllm_server import ServerOptions
    from infra.settings import Settings
    from infra.steps.step import Job, Plan
    from infra.store.manifest import Provenance, read_manifest
    from infra.store.models import import_model
    from infra.store.schemas import LONGCOT
    from infra.store.store import Store
    from infra.store.tables import write_table
    from infra.text.chat import load_tokenizer
    from nano.corpus import draw, work

    rng, seconds = random.Random(0), dict[str, float]()

    def timed(module: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began

        setattr(module, name, call)

    timed(sft, "render_longcot", "render")
    timed(train, "launch", "trainer")
    timed(train, "finish_attempt", "fsync")
    timed(train, "publish_model", "publish")
    settings = Settings(store=str(folder / "store"), work_dir=folder)
    store = Store.open(settings)
    model = import_model(store, HERE / "nano" / "models" / "instruct", "nano")
    table = []
    for number in range(rows):
        problem = draw(rng, "pretrain")
        worked = work(rng, problem)
        text = {"query": problem.query, "thoughts": worked.thoughts, "solution": worked.solution, "format": "bolt"}
        table.append({"query_id": f"q{number}", "sample": 0, "reward": 0.0, **text})
    load_tokenizer(HERE / "nano" / "models" / "instruct")  # imports transformers, as a flow's check of the model does
    longcot = write_table(store, "longcot", "k", LONGCOT, [table], Provenance())
    config = sft.SftRecipe(
        ranks=ranks, epochs=1, learning_rate=1e-3, batch=16, micro_batch=8, max_length=640, overlong="drop"
    )
    options = ServerOptions(max_model_len=640)
    with Servers(ServingConfig(policy=options, reward=options), store, folder) as servers:
        plan = Plan(step="sft", key="k", provenance=Provenance())
        arguments = {"config": config, "longcot": longcot, "model": model, "servers": servers}
        began = time.perf_counter()
        made = sft.train_sft.task.fn(Job(plan, settings, arguments))
        whole = time.perf_counter() - began
    counts = dict(read_manifest(store, made)["counts"])
    inside = counts.get("parts", {})
    seconds |= {part: inside[part] for part in INSIDE if part in inside}
    training = inside.get("train", counts["seconds"])
    seconds["start and end of processes"] = seconds.pop("trainer") - sum(inside.values())
    return {**seconds, "around": whole - training, "training": training}


def measured(tree: Path, given: argparse.Namespace) -> dict[str, float]:
    """One run of the step with the code of a checkout, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        command = [sys.executable, __file__, "--worker", folder, "--rows", str(given.rows), "--ranks", str(given.ranks)]
        done = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    sys.path[0] = str(HERE)  # in place of this folder, whose cot_formats.py hides the package
    from bench.common import bench_parser, report, surroundings

    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline", type=Path, help="a checkout of another commit")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        sys.path[0] = str(Path.cwd())
        print(json.dumps(step(given.rows, given.ranks, given.worker)))
        return
    trees = {"ours": HERE, **({"baseline": given.baseline.resolve()} if given.baseline else {})}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(given.rounds):
        for name, tree in trees.items():
            runs[name].append(measured(tree, given))
    middle = {
        name: {part: round(statistics.median(run[part] for run in found), 2) for part in found[0]}
        for name, found in runs.items()
    }
    result = {"bench": "training_step", "rows": given.rows, "ranks": given.ranks, "seconds": middle}
    if given.baseline:
        result["around_of_baseline"] = round(middle["ours"]["around"] / middle["baseline"]["around"], 2)
    report(result | surroundings(), given.out)


if __name__ == "__main__":
    main()
