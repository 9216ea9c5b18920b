"""A small world for flows: query files, examples, prompts, and a model folder with a real tokenizer but no weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.settings import PROJECT_ROOT
from nano.vocabulary import save_tokenizer

EXAMPLE = (
    "---\ntopic: days\nauthor: us\nlicence: Apache-2.0\n---\n\n## Query\n\nwhat is {0} ?\n\n"
    "## Thoughts\n\nplan : t {0} .\n\n## Solution\n\nanswer : {0} .\n"
)


# The real method in a few minutes: settings of bolt/nano. The smallest evaluates on fewer problems.
SMALL = (
    "config.serving.policy_servers=1",
    "config.bootstrap.queries.draw.limit=100",
    "config.bootstrap.shards=2",
    "config.online.iterations=1",
    "config.online.queries_per_iteration=24",
    "config.online.generate.samples=4",
    "config.online.generate.max_truncated_share=1",
    "config.online.pair.min_samples=2",
    "config.online.guards.max_truncated_share=1",  # so small a run seldom keeps to the format
    "config.online.guards.max_malformed_share=1",
    "config.online.pair.boundary=null",  # few queries have both right and wrong answers
    "config.evaluate.problems.draw.limit=24",
    "config.evaluate.generate.samples=2",
    "config.evaluate.generate.max_truncated_share=1",
    "config.sft.ranks=2",
    "config.online.dpo.ranks=2",
    "config.sft.micro_batch=4",
    "config.sft.batch=8",  # more steps for so few responses, or the model seldom keeps to the format
)
SMALLEST = (*SMALL, "config.evaluate.problems.draw.limit=8")


VOCABULARY = 4096  # more than the tokenizer has


def without_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take tiny weights for those of a large model, which config.json describes."""
    monkeypatch.setattr("infra.serving.model_checks.check_sizes", lambda *_: None)
    monkeypatch.setattr("infra.training.saving.check_fit", lambda *_: None)


def write_queries(path: Path, *queries: str) -> Path:
    path.write_text("".join(json.dumps({"query": query, "reference": "1"}) + "\n" for query in queries))
    return path


def hollow_model(folder: Path, architecture: str = "LlamaForCausalLM", **config: Any) -> Path:
    """A model folder as its files describe it: a real tokenizer, a configuration, and the weights of a tiny
    Llama, which are zero."""
    save_tokenizer(folder)
    score = architecture.endswith("ForSequenceClassification")
    told = {"model_type": "llama", "architectures": [architecture], "max_position_embeddings": 32768}
    told |= {"eos_token_id": 4} | ({"id2label": {"0": "LABEL_0"}} if score else {}) | config
    told |= {"vocab_size": VOCABULARY, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    told |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    shapes = {"model.embed_tokens.weight": (VOCABULARY, 4), "model.norm.weight": (4,)}
    shapes |= {"score.weight" if score else "lm_head.weight": (1 if score else VOCABULARY, 4)}
    layer = {f"{name}_proj": (4, 4) for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")}
    layer |= {f"mlp.{name}_proj": (4, 4) for name in ("gate", "up", "down")}
    layer |= {"input_layernorm": (4,), "post_attention_layernorm": (4,)}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    (folder / "config.json").write_text(json.dumps(told))
    save_file({name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def small_world(folder: Path, queries: int = 12) -> dict[str, Any]:
    """The parameters of `bolt` over files in `folder`. The last two queries are the held-out problems."""
    (folder / "examples").mkdir(parents=True)
    for number in range(3):
        (folder / "examples" / f"{number}.md").write_text(EXAMPLE.format(number))
    hollow_model(folder / "model")
    hollow_model(folder / "reward", "LlamaForSequenceClassification")
    texts = [f"which day is {number} ?" for number in range(queries)]
    serving = {"max_model_len": 4096}
    mined = {
        "sources": [{"path": str(write_queries(folder / "queries.jsonl", *texts))}],
        "clean": {"languages": [], "near_duplicates": None},  # they differ only in a number
        "decontaminate": {"ngram": None, "near_duplicates": None},
    }
    generate = {"samples": 4, "max_tokens": 32, "request_seeds": False}
    prompt = {
        "template": str(PROJECT_ROOT / "prompts" / "in_context.md"),
        "example_template": str(PROJECT_ROOT / "prompts" / "example.md"),
    }
    return {
        "model": str(folder / "model"),
        "reward_model": str(folder / "reward"),
        "serving": {"policy": serving, "reward": serving},
        "estimates": {"tokens_per_response": 100},
        "bootstrap": {
            "examples": {
                "path": str(folder / "examples"),
                "count": 3,
                "max_per_topic": 3,
                "min_actions": 0,
                "min_words": 1,
            },
            "queries": mined,
            "prompt": prompt,
            "generate": generate,
            "filter": {"min_thought_tokens": None},
            "shards": 2,
        },
        "online": {"iterations": 2, "queries_per_iteration": 5, "queries": mined, "generate": generate, "shards": 1},
        "evaluate": {
            "problems": {"sources": [{"path": str(write_queries(folder / "problems.jsonl", *texts[-2:]))}]},
            "generate": {"samples": 3, "max_tokens": 32, "request_seeds": False},
            "shards": 1,
        },
    }


def bootstrap_parameters(world: dict[str, Any]) -> dict[str, Any]:
    return {**{name: world[name] for name in ("model", "reward_model", "serving", "estimates")}, **world["bootstrap"]}


def environment(place: Path) -> dict[str, str]:
    """The environment of a command: store, work folder and Prefect are below `place`."""
    (place / "prefect").mkdir(exist_ok=True)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BOLT_"))},
        "BOLT_STORE": str(place / "store"),
        "BOLT_WORK_DIR": str(place / "work"),
        "PREFECT_HOME": str(place / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }


def command_lines(words: Sequence[str]) -> list[tuple[int, str]]:
    """The pid and command line of running processes whose command line has one of the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it just ended
            continue
        if any(word in line for word in words):
            found.append((int(path.parent.name), line))
    return found


def run_preset(place: Path, preset: str, *assignments: str) -> dict[str, Any]:
    """Run a preset with the command line, in a store of its own. Returns the JSON that it printed the path of, and the
    path."""
    command = [sys.executable, "-m", "flows", preset]
    for assignment in assignments:
        command += ["--set", assignment]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment(place), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout[-2000:]
    path = done.stdout.strip().splitlines()[-1]
    return {**json.loads(Path(path).read_text()), "path": path}
