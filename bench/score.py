"""Measure rewards per second of our scoring step, against one request at a time to the same server.

    python bench/score.py [--model nano/models/reward] [--responses 2000] [--rounds 3]

Ours is the step `score` as the flows run it, from reading the responses to the finished table: chats are rendered and
tokenised, requests sent, Parquet and manifest written. One at a time sends the same token ids over one connection, each
request after the answer to the last; rendering is not timed there. Both use one server, which is warmed up with one
unmeasured round, and take turns. All responses differ, so that none is scored once for several. Figures are medians
over the rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, model_folder, report, surroundings
from bench.serving import imported
from infra.serving.servers import Servers, ServingConfig
from infra.serving.vllm_server import ServerOptions
from infra.steps.step import Job, Plan
from infra.store.manifest import Provenance, Ref
from infra.store.schemas import QUERIES, RESPONSES
from infra.store.store import Store
from infra.store.tables import read_rows, write_table
from infra.text.chat import load_tokenizer
from tasks.rewards.score import ScoreConfig, reward_input_ids, score

SAMPLES = 8  # responses per query
LENGTHS = (10, 40)  # words of a query and of a solution, as in the nano world


def made_up(store: Store, words: list[str], count: int) -> tuple[Ref, Ref]:
    """Tables of queries and of `count` responses, `SAMPLES` per query, each text of `LENGTHS` random words."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(*LENGTHS)))

    plain = {"source": "bench", "source_row": 0}
    asked = [{"query_id": f"q{n}", "query": text(), **plain} for n in range(-(-count // SAMPLES))]
    column = {"example_ids": [], "violations": [], "finish_reason": "stop", "thoughts": "t", "text": ""}
    tokens = dict.fromkeys(("prompt_tokens", "completion_tokens", "thought_tokens", "solution_tokens"), 0)
    rows = [
        {
            "query_id": f"q{n // SAMPLES}",
            "sample": n,
            "solution": text(),
            **column,
            **tokens,
        }
        for n in range(count)
    ]
    tables = [("queries", QUERIES, asked), ("responses", RESPONSES, rows)]
    found = [write_table(store, name, "bench", schema, [held], Provenance()) for name, schema, held in tables]
    return found[0], found[1]


def one_at_a_time(url: str, served_name: str, ids: list[list[int]]) -> list[float]:
    """The rewards of token ids, one request after the other."""
    rewards = []
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        for each in ids:
            payload = {"model": served_name, "input": [each], "use_activation": False}
            answer = client.post("/classify", json=payload).raise_for_status().json()
            rewards.append(float(answer["data"][0]["probs"][0]))
    return rewards


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both contenders on the same responses: rewards per second (median and spread), and how far rewards differ."""
    settings, store, model = imported(given.model, folder)
    tokenizer = load_tokenizer(given.model)
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    queries, responses = made_up(store, words, given.responses)
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    rows = list(read_rows(store, responses, ["query_id", "solution"]))
    ids = [reward_input_ids(tokenizer, asked[row["query_id"]], row["solution"]) for row in rows]
    options = ServerOptions(
        max_model_len=given.max_model_len, kv_cache_gib=given.kv_cache_gib, gpu_memory_utilization=0.8
    )
    seconds: dict[str, list[float]] = {"step": [], "one at a time": []}
    differ = 0.0
    with Servers(ServingConfig(policy=options, reward=options), store, folder) as servers:
        server = servers.reward(model)
        for number in range(given.rounds + 1):
            began = time.perf_counter()
            provenance = Provenance(inputs={"reward_model": model})
            plan = Plan(step="bench", key=f"scores-{number}", provenance=provenance)
            arguments = {
                "config": ScoreConfig(in_flight=given.in_flight),
                "responses": [responses],
                "queries": queries,
                "reward_model": model,
                "servers": servers,
            }
            ref: Ref = score.task.fn(Job(plan, settings, arguments))
            middle = time.perf_counter()
            alone = one_at_a_time(server.url, server.served_name, ids)
            ended = time.perf_counter()
            if number:  # the first is a warm-up
                seconds["step"].append(middle - began)
                seconds["one at a time"].append(ended - middle)
            ours = [row["reward"] for row in read_rows(store, ref, ["reward"])]
            differ = max([differ, *(abs(a - b) for a, b in zip(ours, alone, strict=True))])
    speed = {name: [len(ids) / each for each in found] for name, found in seconds.items()}
    middle_of = {name: statistics.median(found) for name, found in speed.items()}
    return {
        "bench": "score",
        "model": str(given.model),
        "responses": len(ids),
        "tokens": sum(map(len, ids)),
        "rounds": given.rounds,
        "in_flight": given.in_flight,
        "rewards_per_s": {name: round(value, 1) for name, value in middle_of.items()},
        "spread": {name: round((max(each) - min(each)) / middle_of[name], 3) for name, each in speed.items()},
        "step_of_one_at_a_time": round(middle_of["step"] / middle_of["one at a time"], 2),
        "largest_difference_of_a_reward": round(differ, 5),
    }


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--model", type=model_folder, default=str(ROOT / "nano" / "models" / "reward"))
    parser.add_argument("--responses", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=ScoreConfig().in_flight)
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--kv-cache-gib", type=float, default=1.0)
    given = parser.parse_args()
    before = surroundings()
    with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
        result = measure(given, Path(folder)) | before
    report(result, given.out)
    for name, value in result["rewards_per_s"].items():
        print(f"{name:14}{value:10,} rewards/s, spread {result['spread'][name]}")
    print(f"{'step':14}{result['step_of_one_at_a_time']:10} x one at a time")


if __name__ == "__main__":
    main()
