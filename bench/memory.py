"""Compare the estimate of a training's memory with measured peaks, on CPU ranks.

    python bench/memory.py [--cases 30m-sft,135m-sft-zero2,...] [--keep FOLDER]

Each case trains a random Llama for two optimiser steps of two micro-batches per rank, with the project's own trainers
under torchrun, on rows that are exactly `max_length` tokens long. Measured: the peak of a rank's resident memory while
it trains (VmHWM, the highest of the ranks), less the peak of the same training of a model of 0.02M parameters, which is
what the process itself takes. Estimated: `infra.training.memory.estimate` without the process. One JSON line at the end
has all figures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from infra.processes.devices import this_machine
from infra.processes.torchrun import launch
from infra.store.model_files import CONFIG, ModelFiles
from infra.training.config import DpoConfig, RlConfig, SftConfig, TrainingConfig
from infra.training.memory import GIB, estimate, sizes_of
from infra.training.switches import settled

SHAPES = {
    "nothing": {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "num_key_value_heads": 1},
    "30m": {"vocab_size": 32000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
    | {"num_attention_heads": 6, "num_key_value_heads": 2},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
}
CASES: dict[str, dict[str, Any]] = {
    "30m-sft": {"zero_stage": 0, "ranks": 1, "micro_batch": 2, "max_length": 512},
    "30m-sft-long": {"zero_stage": 0, "ranks": 1, "micro_batch": 2, "max_length": 2048},
    "30m-sft-long-checkpointing": {"zero_stage": 0, "ranks": 1, "micro_batch": 2, "max_length": 2048}
    | {"gradient_checkpointing": True},
    "30m-sft-fp32": {"zero_stage": 0, "ranks": 1, "micro_batch": 2, "max_length": 512, "bf16": False},
    "30m-sft-zero2": {"zero_stage": 2, "ranks": 2, "micro_batch": 2, "max_length": 512},
    "30m-sft-zero3": {"zero_stage": 3, "ranks": 2, "micro_batch": 2, "max_length": 512},
    "30m-dpo-zero2": {"zero_stage": 2, "ranks": 2, "micro_batch": 1, "max_length": 512, "method": "dpo"},
    "30m-rl-zero2": {"zero_stage": 2, "ranks": 2, "micro_batch": 2, "max_length": 512, "method": "rl"},
    "135m-sft": {"zero_stage": 0, "ranks": 1, "micro_batch": 2, "max_length": 256},
    "135m-sft-zero2": {"zero_stage": 2, "ranks": 2, "micro_batch": 2, "max_length": 256},
    "135m-sft-zero2-long": {"zero_stage": 2, "ranks": 2, "micro_batch": 1, "max_length": 1024},
    "135m-sft-zero2-long-checkpointing": {"zero_stage": 2, "ranks": 2, "micro_batch": 1, "max_length": 1024}
    | {"gradient_checkpointing": True},
    "135m-dpo": {"zero_stage": 0, "ranks": 1, "micro_batch": 1, "max_length": 256, "method": "dpo"},
}


def model_of(name: str, root: Path) -> Path:
    """A random Llama of a named shape with the nano world's tokenizer, made once."""
    folder = root / name
    if folder.is_dir():
        return folder
    from transformers import LlamaConfig, LlamaForCausalLM

    from nano.vocabulary import END, encoder, save_tokenizer

    model = LlamaForCausalLM(LlamaConfig(**SHAPES[name], max_position_embeddings=4096, eos_token_id=encoder()[END]))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def make_config(model: Path, folder: Path, case: dict[str, Any]) -> TrainingConfig:
    """The trainer's configuration of a case, and its rows, each `max_length` tokens long."""
    settings = {name: value for name, value in case.items() if name not in ("ranks", "method")}
    batch, length = 2 * case["micro_batch"] * case["ranks"], case["max_length"]
    prompt = "<|user|> what is left ? <|end|> <|assistant|>"
    text = " ".join(["day"] * (length - len(prompt.split()) - 1))  # and the end token
    columns = {"prompt": prompt, "completion": text, "chosen": text, "rejected": text.replace("day", "left", 1)}
    columns |= {"query_id": "q", "response": text}
    count = 2 * batch
    table = {name: [value] * count for name, value in columns.items()}
    rewards = {"ended": [True] * count, "reward": [float(row % 2) for row in range(count)]}
    folder.mkdir()
    rows = folder / "rows.parquet"
    pq.write_table(pa.table(table | rewards), rows)
    common = {"model": model, "data": (rows,), "output": folder / "model", **settings, "batch": batch, "epochs": 1}
    if case.get("method") == "rl":
        return RlConfig(**common, reference=model, method="grpo", temperature=1.0)
    return DpoConfig(**common, reference=model) if case.get("method") == "dpo" else SftConfig(**common)


def measured(config: TrainingConfig, ranks: int, folder: Path) -> dict[str, float]:
    """Train, and return the highest figures of the ranks, in bytes: `imported` and `peak`."""
    launch("bench.memory", config, ranks=ranks, log_path=folder / "train.log", timeout_s=3600)
    found = [json.loads(path.read_text()) for path in folder.glob("rank-*.json")]
    return {name: max(each[name] for each in found) for name in found[0]}


def resident(name: str) -> int:
    """Resident memory of this process in bytes: now (`VmRSS`), or at most so far (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def as_rank(config_path: Path) -> None:
    """What each rank runs: a trainer that notes its memory when its training ends, and ends itself then."""
    from infra.training import dpo, rl, sft
    from infra.training import trainer as training

    imported = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten

    class Noting(training.MetricsFile):
        def on_train_end(self, *_: Any, **__: Any) -> None:
            noted = {"imported": imported, "peak": resident("VmHWM")}
            path = config_path.with_name(f"rank-{os.environ['RANK']}.json")
            path.write_text(json.dumps(noted))
            sys.stdout.flush()
            os._exit(0)

    training.MetricsFile = Noting  # type: ignore[misc]
    told = json.loads(config_path.read_text())
    (rl if "temperature" in told else dpo if "reference" in told else sft).main(config_path)


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--keep", type=Path, help="folder for models and logs, which stay there")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    bare: dict[tuple[Any, ...], float] = {}  # what a process takes, by method, stage, ranks and number format
    with tempfile.TemporaryDirectory(prefix="bolt-bench-") as temporary:
        root = options.keep or Path(temporary)
        root.mkdir(exist_ok=True)
        print(f"{'case':36} {'estimate':>9} {'measured':>9} {'ratio':>6}  GiB; process, imports; of the estimate")
        for name in options.cases.split(","):
            case, model = CASES[name], model_of(name.partition("-")[0], root)
            kind = tuple(case.get(key) for key in ("method", "zero_stage", "ranks", "bf16"))
            if kind not in bare:
                folder = root / f"nothing-for-{name}"
                small = case | {"micro_batch": 1, "max_length": 16}
                config = make_config(model_of("nothing", root), folder, small)
                bare[kind] = measured(config, case["ranks"], folder)["peak"]
            config = make_config(model, root / name, case)
            files = ModelFiles.in_folder(model)
            recipe = settled(config, files.read(CONFIG), this_machine())
            expected = estimate(sizes_of(files), recipe, case["ranks"], on_gpu=False, process=False)
            found = measured(config, case["ranks"], root / name)
            figures = {"estimate": expected.total, "measured": found["peak"] - bare[kind]}
            figures |= {"process": bare[kind], "imported": found["imported"]}
            row = {key: round(value / GIB, 2) for key, value in figures.items()}
            row["ratio"] = round(figures["estimate"] / figures["measured"], 2)
            results.append({"case": name, "fullest": expected.moment, **row})
            print(
                f"{name:36} {row['estimate']:9.2f} {row['measured']:9.2f} {row['ratio']:6.2f}  "
                f"{row['process']:.2f}, {row['imported']:.2f}; {expected.moment}: {expected.said()}",
                flush=True,
            )
    report({"bench": "memory", "cases": results, **surroundings()}, options.out)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].endswith(".json"):
        as_rank(Path(sys.argv[1]))
    else:
        os.chdir(ROOT)
        main()
