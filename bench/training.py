"""What the benches of training share: rows of two length mixes, our trainer, and TRL's as it is by default.

As a script it is TRL's trainer: `python bench/training.py sft|dpo CONFIG.json` prints its figures as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from infra.processes.torchrun import launch, metrics_path
from infra.text.chat import load_tokenizer, prompt_text
from infra.training.config import DpoConfig, SftConfig, trained_path
from nano.corpus import answered, draw, work

NANO = Path(__file__).parents[1] / "nano" / "models" / "instruct"
MIXES = {"nano": 640, "longcot": 8_192}
"""Length mixes, with the longest row that each allows. `longcot`: log-normal between 200 and 8,000 tokens."""


def write_rows(mix: str, rows: int, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write pairs of worked nano problems (`prompt`, `completion`, `chosen`, `rejected`): the rows' file, and a model.

    In the mix `longcot` a text is as many worked problems as its length asks for, and the nano model may read as much.
    """
    rng, lengths = random.Random(seed), np.random.default_rng(seed).lognormal(7.0, 0.9, rows)
    tokenizer = load_tokenizer(NANO)

    def text(length: int) -> str:
        words: list[str] = []
        while not words or len(words) < length:
            words += answered(work(rng, draw(rng, "pretrain"))).split()
            if mix == "nano":
                break
        return " ".join(words if mix == "nano" else words[:length])

    table: dict[str, list[str]] = {"prompt": [], "completion": [], "chosen": [], "rejected": []}
    for length in np.clip(lengths, 200, 8_000).astype(int).tolist():
        query = draw(rng, "pretrain").query
        table["prompt"].append(prompt_text(tokenizer, [{"role": "user", "content": query}]))
        table["completion"].append(text(length))
        table["chosen"].append(table["completion"][-1])
        table["rejected"].append(text(int(length * rng.uniform(0.7, 1.3)) if length < 6_000 else length))
    path, model = folder / "rows.parquet", folder / "model"
    pq.write_table(pa.table(table), path)
    shutil.copytree(NANO, model)
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": MIXES[mix]}
    (model / "config.json").write_text(json.dumps(config))
    return path, model


def write_random_rows(path: Path, model: Path, words: list[str], number: int, longest: int) -> None:
    """Write rows whose completions are 60 to `longest` random words."""
    chance, tokenizer = random.Random(0), load_tokenizer(model)
    prompts = [prompt_text(tokenizer, [{"role": "user", "content": chance.choice(words)}]) for _ in range(number)]
    completions = [" ".join(chance.choices(words, k=chance.randint(60, longest))) for _ in range(number)]
    pq.write_table(pa.table({"prompt": prompts, "completion": completions}), path)


def ours(kind: str, config: SftConfig | DpoConfig, ranks: int, folder: Path) -> dict[str, Any]:
    """Our trainer's figures: seconds in training steps, mean loss, and its report."""
    log_path = folder / "ours.log"
    launch(f"infra.training.{kind}", config, ranks=ranks, log_path=log_path)
    report = json.loads(trained_path(config.output).read_text())
    metrics = [json.loads(line) for line in metrics_path(log_path).read_text().splitlines()]
    seconds = next(line["train_runtime"] for line in metrics if "train_runtime" in line)
    return {"seconds": seconds + report.get("reference_seconds", 0.0), "loss": report["mean_loss"], "report": report}


def theirs(kind: str, config: SftConfig | DpoConfig, folder: Path) -> dict[str, Any]:
    """The figures of TRL's trainer: one process, its defaults, our rows, learning rate, batch, epochs and seed."""
    path = folder / "theirs.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, __file__, kind, str(path)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(our: dict[str, Any], their: dict[str, Any], aim: float) -> dict[str, Any]:
    """How many times faster ours is, both mean losses, and the share by which they differ."""
    ratio = their["seconds"] / our["seconds"]
    apart = abs(our["loss"] / their["loss"] - 1)
    reached = {"ratio": round(ratio, 2), "aim": aim, "reached": ratio >= aim, "losses_differ_by": round(apart, 4)}
    return {**reached, "loss": our["loss"], "trl_loss": their["loss"], "ranks": our["report"]["ranks"]}


def main(kind: str, path: Path) -> None:
    """TRL's trainer by its defaults. The rows come as token ids, and none is cut."""
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from infra.training import dpo, sft

    config: Any = (SftConfig if kind == "sft" else DpoConfig).model_validate_json(path.read_text())
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(config.model)
    columns = ["prompt", "completion"] if kind == "sft" else ["prompt", "chosen", "rejected"]
    made = (sft if kind == "sft" else dpo).converter(tokenizer)
    rows = Dataset.from_list([made(row) for row in pq.read_table(config.data[0], columns=columns).to_pylist()])
    arguments = {
        "output_dir": str(path.with_name("theirs")),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,
        "num_train_epochs": config.epochs,
        "gradient_accumulation_steps": config.batch // 8,  # 8 rows are TRL's default per device
        "seed": config.seed,
        "max_length": None,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
    }

    class Pretokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    args = SFTConfig(**arguments) if kind == "sft" else DPOConfig(**arguments, beta=config.beta)
    trainer = SFTTrainer if kind == "sft" else Pretokenised
    result = trainer(model=str(config.model), args=args, train_dataset=rows, processing_class=tokenizer).train()
    print(json.dumps({"seconds": result.metrics["train_runtime"], "loss": result.training_loss}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
