"""Training on one GPU: tokens/s, MFU and peak memory, with and without each switch; bench/gpu_training.sh starts it.

    python bench/gpu_training.py [--minutes 7.5] [--cap 75] [--steps 8] [--only TEXT] [--out FOLDER] [--cpu-smoke]

Each configuration (bench/gpu_configurations.py) runs in a process of its own under torchrun, through the project's own
trainer, and prints one JSON line. One that fails or takes too long prints why, and the next one begins. A Markdown
table comes at the end. `--cpu-smoke` runs the same with tiny models and short rows on a CPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from bench.common import ROOT, report, surroundings
from bench.gpu_configurations import (
    CONFIGURATIONS,
    PEAKS,
    SHAPES,
    SMALLER,
    TINY,
    Configuration,
    trainer_config,
    useful_flops,
)
from infra.processes.causes import LAST_LINES, cause
from infra.processes.torchrun import TrainerError, launch
from infra.text.chat import load_tokenizer, prompt_text

WORDS = [str(number) for number in range(41)]  # a token each in nano's vocabulary
TOKENIZER = ROOT / "nano" / "models" / "instruct"
WARM_UP = 2  # steps that are not counted: allocation, compilation
PROMPT, SHORTEST = 32, 200  # tokens


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Write a Llama of that shape with random weights in bfloat16, and nano's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=4)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    load_tokenizer(TOKENIZER).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def lengths(configuration: Configuration, longest: int, rows: int) -> list[int]:
    """Tokens of each row: all the longest, or a LongCoT mix (log-normal around 1,800, from 200 to the longest)."""
    if configuration.full:
        return [longest] * rows
    draw, scale = random.Random(0), longest / configuration.length
    drawn = (math.exp(draw.gauss(math.log(1800), 0.8)) for _ in range(rows))
    return [round(scale * min(max(each, SHORTEST), configuration.length)) for each in drawn]


def write_rows(path: Path, configuration: Configuration, longest: int, rows: int) -> None:
    """Write the rows as the trainers read them; of a pair, the rejected side is another row's length or shorter."""
    draw = random.Random(1)
    tokenizer = load_tokenizer(TOKENIZER)
    shortest = 2 * PROMPT * longest // configuration.length  # on a CPU, prompts are shorter as well

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=max(1, count)))

    def row(length: int, other: int) -> dict[str, str]:
        asked = prompt_text(tokenizer, [{"role": "user", "content": words(shortest // 2)}])
        room = length - len(tokenizer.encode(asked, add_special_tokens=False)) - 1  # and the end token
        if configuration.trainer == "sft":
            return {"prompt": asked, "completion": words(room)}
        return {"prompt": asked, "chosen": words(room), "rejected": words(room - length + min(length, other))}

    sizes = lengths(configuration, longest, rows)
    pq.write_table(pa.Table.from_pylist([row(*pair) for pair in zip(sizes, sizes[::-1], strict=True)]), path)


def measured(configuration: Configuration, work: Path, given: argparse.Namespace, cap: float) -> dict[str, Any]:
    """Run a configuration. Returns its figures, or why it failed."""
    longest = configuration.length // (SMALLER if given.cpu_smoke else 1)
    kind = "full" if configuration.full else "mix"
    data = work / f"{configuration.trainer}-{configuration.length}-{kind}.parquet"
    if not data.exists():
        write_rows(data, configuration, longest, 4 * configuration.batch)
    folder = work / str(len(list(work.iterdir())))
    folder.mkdir()
    result, log = folder / "steps.jsonl", folder / "train.log"
    config = trainer_config(configuration, work / configuration.shape, data, folder / "model", longest)

    from bench.gpu_steps import Job  # needs torch, which takes a while to load

    job = Job(
        trainer=configuration.trainer,
        config=config,
        trl=configuration.trl,
        attention=configuration.attention,
        steps=given.steps,
        seconds=given.seconds,
        result=result,
    )
    failed, began = None, time.monotonic()
    try:
        launch("bench.gpu_steps", job, ranks=1, log_path=log, timeout_s=cap)
    except TrainerError as error:
        failed = str(error).partition(LAST_LINES)[0] if "still running" in str(error) else cause(log.read_text())
    lines = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
    if log.exists() and given.out:
        (given.out / f"{configuration.group} {configuration.name}.log".replace(" ", "-")).write_text(log.read_text())
    named = {"group": configuration.group, "name": configuration.name}
    return {**named, **figures(lines), "wall_s": round(time.monotonic() - began, 1), "failed": failed}


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a configuration from its process's lines; empty if no step was measured after the warm-up."""
    steps = [line for line in lines if "seconds" in line]
    counted = steps[WARM_UP:]
    if not counted:
        return {}
    model = lines[0]
    peak = next((flops for name, flops in PEAKS.items() if name in (model["gpu"] or "")), None)
    used = statistics.median(useful_flops(step, model) / step["seconds"] for step in counted)
    return {
        "tokens_s": round(statistics.median(step["tokens"] / step["seconds"] for step in counted)),
        "tflops": round(used / 1e12, 1),
        "mfu": round(used / peak, 3) if peak else None,
        "peak_gib": round(steps[-1]["peak"] / 2**30, 2),
        "step_s": round(statistics.median(step["seconds"] for step in counted), 3),
        "first_step_s": round(steps[0]["seconds"], 1),
        "padding": round(1 - sum(step["tokens"] for step in counted) / sum(step["computed"] for step in counted), 3),
        "first_loss": next((line["loss"] for line in lines if "loss" in line), None),
        "steps": len(counted),
        "attention": model["attention"],
        "liger": model["liger"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table; `x` is tokens/s against the first configuration of the same group."""
    first: dict[str, float] = {}
    rows = []
    for each in sorted(results, key=lambda each: each["group"]):
        if "tokens_s" in each:
            base = first.setdefault(each["group"], each["tokens_s"])
            mfu = "-" if each["mfu"] is None else f"{each['mfu']:.1%}"
            cells = [f"{each['tokens_s']:,}", f"{each['tokens_s'] / base:.2f}", mfu, each["peak_gib"], each["step_s"]]
            cells += [f"{each['padding']:.0%}", each["first_loss"], each["attention"]]
        else:
            cells = ["-"] * 8
        reason = (each["failed"] or "").replace("|", "\\|")[:160]
        rows.append([each["group"], each["name"], *cells, reason])
    titles = ["what", "switch", "tokens/s", "x", "MFU", "peak GiB", "step s", "padding", "first loss", "attention", ""]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in [titles, ["---"] * 11, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="no configuration goes on after that")
    parser.add_argument(
        "--cap", type=float, default=75, help="seconds that a configuration may take, its start included"
    )
    parser.add_argument("--steps", type=int, default=8, help=f"optimiser steps; the first {WARM_UP} are not counted")
    parser.add_argument(
        "--seconds", type=float, default=12, help="stop earlier if the steps after the first take longer"
    )
    parser.add_argument("--only", default="", help="only configurations with this in '{group}: {name}'")
    parser.add_argument("--out", type=Path, help="folder for results.jsonl, table.md and the trainers' logs")
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny models and short rows on a CPU")
    given = parser.parse_args()
    end = math.inf if given.cpu_smoke else time.monotonic() + 60 * given.minutes
    chosen = [each for each in CONFIGURATIONS if given.only in f"{each.group}: {each.name}"]
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    out = given.out / "results.jsonl" if given.out else None
    report(surroundings(), out)
    with tempfile.TemporaryDirectory(prefix="bolt-gpu-") as folder:
        work = Path(folder)
        for name in dict.fromkeys(each.shape for each in chosen):
            make_model(work / name, TINY if given.cpu_smoke else SHAPES[name])
        for each in chosen:
            left = end - time.monotonic()
            named = {"group": each.group, "name": each.name}
            if given.cpu_smoke and each.only_gpu:
                results.append({**named, "failed": "not on a CPU"})
            elif left < 15:
                results.append({**named, "failed": "not run: the time is over"})
            else:
                results.append(measured(each, work, given, min(given.cap, left)))
            report(results[-1], out)
    made = table(results)
    print(made, flush=True)
    if given.out:
        (given.out / "table.md").write_text(made + "\n")
    return 1 if given.cpu_smoke and any(each["failed"] not in (None, "not on a CPU") for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
