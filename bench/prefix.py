"""Measure the prompt tokens that a server computes: requests grouped by their examples, against random order.

    python bench/prefix.py [--model nano/models/instruct] [--requests 2000] [--shards 4] [--kv-tokens 4096]

The requests are those of the step `generate`, with three of ten examples per prompt. Both orders are sent as the step
sends them (`infra.serving.pool.complete_on`, `--shards` of them at once), each to a new server. Its KV cache has room
for `--kv-tokens` tokens, which is less than the prefixes of all sets of examples need (`tokens_of_all_sets`). Computed
tokens are those that the server's metrics count as looked up in the prefix cache, less the hits. Every request samples
one sequence of at most `--max-tokens` tokens, since only the reading of prompts is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import report, surroundings
from bench.serving import imported, prompts_parser
from infra.serving.completions import Request, Sampling
from infra.serving.pool import Pool, complete_on
from infra.serving.rate import prompt_tokens
from infra.serving.servers import Servers, ServingConfig
from infra.serving.vllm_server import ServerOptions
from infra.text.chat import load_tokenizer
from tasks.examples.read import ExamplesConfig, example_files, read_example
from tasks.queries.sources import Source, queries_of
from tasks.responses.prompt import PromptConfig, draw_examples, in_context_text

Prompts = dict[str, tuple[tuple[str, ...], list[int]]]  # by query: example ids, token ids


def prompts(given: argparse.Namespace) -> Prompts:
    """The prompts, in the order of the queries."""
    tokenizer = load_tokenizer(given.model)
    prompt = PromptConfig(template=given.template, example_template=given.example_template)
    examples = [read_example(path) for path in example_files(ExamplesConfig(path=given.examples))]
    found: Prompts = {}
    for query in islice(queries_of(Source(path=str(given.queries))), given.requests):
        shown = draw_examples(examples, prompt.examples, 0, query["query_id"])
        text = in_context_text(prompt, shown, query["query"], tokenizer, "bolt")
        ids = tokenizer.encode(text, add_special_tokens=False)
        found[query["query_id"]] = (tuple(e["example_id"] for e in shown), ids)
    return found


def distinct_tokens(requests: Prompts) -> int:
    """Tokens in the prefix tree of all sets of examples: the size of a cache that holds all of them."""
    ends: dict[tuple[str, ...], list[int]] = {}
    for shown, ids in requests.values():
        known = ends.setdefault(shown, ids)
        shared = next(
            (n for n, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids))
        )
        ends[shown] = known[:shared]
    return len({tuple(ids[: n + 1]) for ids in ends.values() for n in range(len(ids))})


def computed(given: argparse.Namespace, requests: Prompts, grouped: bool) -> dict[str, int]:
    """The number of prompt tokens of all requests, and of those that a new server computes."""
    with tempfile.TemporaryDirectory(prefix="bench-prefix-") as folder:
        _, store, model = imported(given.model, Path(folder))
        options = ServerOptions(
            max_model_len=given.max_model_len,
            max_num_seqs=given.max_num_seqs,
            kv_cache_gib=given.kv_tokens * given.kv_bytes_per_token / 2**30,
            extra_args=("--block-size", str(given.block_size)),
        )
        with Servers(ServingConfig(policy=options, reward=options), store, Path(folder)) as servers:
            pool = servers.policies(model)
            names = list(requests)
            shards = [names[n :: given.shards] for n in range(given.shards)]
            with ThreadPoolExecutor(given.shards) as threads:
                list(threads.map(lambda shard: ask(given, pool, requests, shard, grouped), shards))
            looked_up, hits = prompt_tokens(pool.living()[0])
    return {"prompt_tokens": int(looked_up), "computed": int(looked_up - hits)}


def ask(given: argparse.Namespace, pool: Pool, requests: Prompts, names: list[str], grouped: bool) -> None:
    """Send the requests of one shard, grouped as the step `generate` does, or in random order."""
    random.Random(0).shuffle(names)
    groups = [names]
    if grouped:
        groups = [
            list(group) for _, group in groupby(sorted(names, key=lambda n: requests[n][0]), lambda n: requests[n][0])
        ]
    done: list[str] = []
    asking = complete_on(
        pool,
        groups,
        lambda name: Request(name, requests[name][1], None),
        Sampling(n=1, max_tokens=given.max_tokens),
        max_in_flight=given.in_flight,
        on_result=lambda request, _: done.append(request.request_id),
        on_quarantine=lambda request, reason: sys.exit(f"{request.request_id} {reason}"),
    )
    asyncio.run(asking)


def kv_bytes_per_token(model: Path) -> int:
    """Bytes of one token's keys and values in bfloat16, for a dense model."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    heads = config.get("num_key_value_heads", config["num_attention_heads"])
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * heads * size * 2)


def main() -> None:
    parser = prompts_parser(__doc__)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=4, help="requests per shard")
    parser.add_argument("--max-tokens", type=int, default=4)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--block-size", type=int, default=32, help="tokens per block of the KV cache")
    parser.add_argument("--kv-tokens", type=int, default=4096, help="size of the KV cache in tokens")
    given = parser.parse_args()
    given.kv_bytes_per_token = kv_bytes_per_token(given.model)
    before = surroundings()
    requests = prompts(given)
    found = {name: computed(given, requests, name == "grouped") for name in ("grouped", "random order")}
    if len({each["prompt_tokens"] for each in found.values()}) != 1:
        raise SystemExit(f"the two orders had different prompts: {found}")
    result = {
        "bench": "prefix",
        "model": str(given.model),
        "requests": len(requests),
        "sets": len({shown for shown, _ in requests.values()}),
        "tokens_of_all_sets": distinct_tokens(requests),
        "kv_tokens": given.kv_tokens,
        "prompt_tokens": found["grouped"]["prompt_tokens"],
        "computed": {name: each["computed"] for name, each in found.items()},
        "grouped_of_random": round(found["grouped"]["computed"] / found["random order"]["computed"], 3),
    } | before
    report(result, given.out)


if __name__ == "__main__":
    main()
