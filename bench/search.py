"""Measure tree search: the policy's tokens per second, against bare vLLM and against one problem after the other.

    python bench/search.py [--problems 200] [--tokens 1600] [--one-by-one 8]

Ours is the step `search_problems` (strategy `mctsg`) as the flow runs it, in `--shards` shards at once. Bare is one
call of `vllm.LLM.generate` in a process of its own, built from the server's command line: the same prompts, each sample
with the length that the search got, all known beforehand. `fixed` scores by a formula, so that only the policy's server
is measured; `reward model` asks the nano world's reward model, which here shares the cores with the policy.

    python bench/search.py --model FOLDER --problem-file FILE --delimiter '\\n' --answer TEXT

does so with another policy, whose steps end and whose answers begin in another way.

    python bench/search.py --tree

measures the search's own time per expansion, without servers, at 100, 1,000 and 10,000 nodes a tree.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from bench.serving import bare_engine, imported
from infra.serving.completions import Sampling
from infra.serving.servers import Servers, ServingConfig
from infra.serving.stream import Stream
from infra.serving.vllm_server import ServerOptions, VllmServer, _environment
from infra.settings import Settings
from infra.steps.step import Job, Plan
from infra.store.manifest import Provenance, Ref, expect
from infra.store.models import import_model
from infra.store.store import Store
from tasks.mutual.adapt import StepFormat
from tasks.queries.clean import CleanConfig, clean_queries
from tasks.queries.collect import collect_queries
from tasks.queries.distinct import drop_duplicates
from tasks.queries.draw import DrawConfig, subsample
from tasks.queries.sources import Source
from tasks.search import ask
from tasks.search.ask import SearchSampling
from tasks.search.search_problems import search_problems
from tasks.search.strategies import SearchConfig, search
from tasks.search.tree import Ask, NextSteps, Result, Sampled, Score, Tree

NANO = ROOT / "nano"
NANO_STEPS = SearchSampling(step_tokens=32, solution_tokens=160, request_seeds=False)


class Recorded:
    """Every request that a search sends to the policy, as prompt and length of each sample."""

    def __init__(self) -> None:
        self.samples: list[tuple[list[int], int]] = []

    def ask(self, stream: Stream, group: str, requests: Any, sampling: Sampling, on_result: Any, refused: Any) -> Any:
        def keep(request: Any, completions: list[Any]) -> None:
            if not sampling.first_log_probs:  # else it is the judge's
                self.samples += [(list(request.prompt_ids), each.tokens) for each in completions]
            on_result(request, completions)

        return ASK(stream, group, requests, sampling, keep, refused)


ASK = Stream.ask


def fixed_scores(*_: Any) -> ask.Scorer:
    """Rewards by a formula of the text: no server is asked."""

    async def score(_group: str, texts: Mapping[str, str], keep: Callable[[str, dict[str, Any]], None]) -> None:
        for name, text in texts.items():
            keep(name, {"reward": random.Random(text).random()})

    return nullcontext(score)


class Ours:
    """The search step in an artifact store of its own."""

    def __init__(
        self,
        given: argparse.Namespace,
        settings: Settings,
        servers: Servers,
        policy: Ref,
        judge: Ref,
        sampling: SearchSampling = NANO_STEPS,
    ) -> None:
        self.given, self.settings, self.servers, self.policy, self.judge = given, settings, servers, policy, judge
        self.sampling = sampling
        self.store = Store.open(settings)
        source = Source(path=str(given.problem_file))
        collected = self._made(collect_queries, "collected", source=source)
        clean = CleanConfig(min_characters=1, languages=())
        cleaned = self._made(clean_queries, "cleaned", config=clean, sources=[collected])
        distinct = self._made(drop_duplicates, "distinct", near_duplicates=None, queries=[cleaned])
        self.queries = self._made(subsample, "queries", config=DrawConfig(limit=given.problems), queries=distinct)

    def _made(self, task: Any, name: str, **arguments: Any) -> Ref:
        ref: Ref = task.task.fn(Job(Plan(step="bench", key=name, provenance=Provenance()), self.settings, arguments))
        return ref

    def searched(self, name: str, shards: int, only: int | None = None) -> tuple[float, int]:
        """Seconds and sampled tokens of a search, in as many shards at once; `only`: the one shard that is searched."""

        def shard(number: int) -> Ref:
            return self._made(
                search_problems,
                f"{name}-{number}",
                config=SearchConfig(tokens=self.given.tokens),
                sampling=self.sampling,
                format=StepFormat(delimiter=self.given.delimiter, answer=self.given.answer),
                judge=None,
                verifier="short-answer",
                queries=self.queries,
                policy=self.policy,
                reward_model=self.judge,
                servers=self.servers,
                shard=number,
                shards=shards,
            )

        began = time.perf_counter()
        with ThreadPoolExecutor(shards) as threads:
            made = list(threads.map(shard, range(shards) if only is None else [only]))
        seconds = time.perf_counter() - began
        return seconds, sum(expect(self.store, ref).counts["completion_tokens"] for ref in made)


def _serve(pipe: Connection, command: list[str], samples: list[tuple[list[int], int]], log: Path) -> None:
    """The bare process: start with the server's command line, warm up, and generate all samples once."""
    llm = bare_engine(command, log)
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": ids} for ids, _ in samples]
    params = [SamplingParams(max_tokens=tokens, min_tokens=tokens, ignore_eos=True) for _, tokens in samples]
    llm.generate(prompts[:256], params[:256], use_tqdm=False)
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    pipe.send((seconds, sum(len(sample.token_ids) for output in outputs for sample in output.outputs)))


def bare(command: list[str], samples: list[tuple[list[int], int]], log: Path) -> tuple[float, int]:
    """Seconds and tokens of bare vLLM."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, command, samples, log))
    process.start()
    other.close()
    try:
        seconds, tokens = pipe.recv()
    except EOFError:
        raise SystemExit(f"bare vLLM ended early; log: {log}\n{log.read_text()[-3000:]}") from None
    process.join()
    return seconds, tokens


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The search with fixed scores, with a reward model, one problem after the other, and bare vLLM."""
    settings, store, policy = imported(given.model, folder)
    judge = import_model(store, (NANO / "models" / "reward").resolve(), "reward")
    options = ServerOptions(max_model_len=1024, max_num_seqs=given.max_num_seqs, kv_cache_gib=1)
    serving = ServingConfig(policy=options, reward=options, share_devices=False)
    figures: dict[str, Any] = {"bench": "search", "problems": given.problems, "tokens": given.tokens}
    figures["shards"] = given.shards
    recorded = Recorded()
    with Servers(serving, store, folder) as servers:
        steps = {"step_tokens": given.step_tokens, "solution_tokens": given.solution_tokens}
        sampling = SearchSampling(**steps, request_seeds=False, max_truncated_share=1)
        ours = Ours(given, settings, servers, policy, judge, sampling)
        server = servers.generation(policy)
        assert isinstance(server, VllmServer)
        command = server.command()[4:]
        with patch("tasks.search.search_problems.discriminative", fixed_scores):
            ours.searched("warm-up", 50, only=0)
            with patch.object(Stream, "ask", lambda *given: recorded.ask(*given)):
                figures["fixed"] = speed(*ours.searched("fixed", given.shards))
            one = [ours.searched("one", given.problems, only=number) for number in range(given.one_by_one)]
        figures["one after the other"] = speed(sum(each[0] for each in one), sum(each[1] for each in one))
        servers.reward(judge)
        figures["reward model"] = speed(*ours.searched("scored", given.shards))
    os.environ.update(_environment("generate"))
    figures["bare"] = speed(*bare([*command, "--disable-log-stats"], recorded.samples, folder / "bare.log"))
    figures["samples"] = len(recorded.samples)
    each = {name: figures[name]["tokens_per_s"] for name in ("fixed", "reward model", "one after the other", "bare")}
    figures["fixed_of_bare"] = round(each["fixed"] / each["bare"], 3)
    figures["scored_of_bare"] = round(each["reward model"] / each["bare"], 3)
    figures["fixed_of_one_by_one"] = round(each["fixed"] / each["one after the other"], 2)
    return figures


def speed(seconds: float, tokens: int) -> dict[str, float]:
    """Seconds, tokens, and tokens per second."""
    return {"seconds": round(seconds, 2), "tokens": tokens, "tokens_per_s": round(tokens / seconds)}


def expansions(sizes: tuple[int, ...] = (100, 1_000, 10_000)) -> dict[str, Any]:
    """Microseconds of the search's own time per expansion, over the last tenth of a tree's nodes, by strategy and by
    the number of steps that a solution has at most."""
    found: dict[str, Any] = {"bench": "search-tree"}
    for strategy, steps in product(("mctsg", "mcts"), (8, 64)):
        spent = {f"{size} nodes": _expansion(strategy, size, steps) for size in sizes}
        first, *_, last = spent.values()
        found[f"{strategy}, {steps} steps"] = {"us": spent, "growth": round(last / first, 2)}
    found["growth of log n"] = round(math.log(sizes[-1]) / math.log(sizes[0]), 2)
    return found


def _expansion(strategy: Any, size: int, steps: int) -> float:
    """Microseconds of the search's own time per expansion while the last tenth of `size` nodes is added."""
    rng, tree = random.Random(1), Tree()

    def answer(wish: Ask) -> Result:
        if isinstance(wish, Score):
            return rng.random()
        if isinstance(wish, NextSteps):
            return [Sampled(f" {rng.random()} .", 6, ended=False) for _ in range(wish.count)]
        return [Sampled(" so it is .", 6, ended=True) for _ in range(wish.count)]

    going = search(tree, SearchConfig(strategy=strategy, tokens=10**9, max_steps=steps))
    asks, spent, expanded = next(going), 0.0, 0
    while len(tree.nodes) < size:
        results = [answer(wish) for wish in asks]
        late = len(tree.nodes) > 0.9 * size
        began = time.perf_counter()
        asks = going.send(results)
        spent += (time.perf_counter() - began) if late else 0
        expanded += late and isinstance(asks[0], NextSteps)
    return round(1e6 * spent / expanded, 1)


def escaped(text: str) -> str:
    """The value of an option in which a line feed is written as a backslash and an n."""
    return text.replace("\\n", "\n")


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--model", type=Path, default=NANO / "models" / "instruct")
    parser.add_argument("--problem-file", type=Path, default=NANO / "data" / "test.jsonl")
    parser.add_argument("--delimiter", type=escaped, default=" .", help="what ends a step, with \\n for a line feed")
    parser.add_argument("--answer", default="answer :", help="what the last step begins with")
    parser.add_argument("--step-tokens", type=int, default=32)
    parser.add_argument("--solution-tokens", type=int, default=160)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1_600, help="budget per problem: 64 solutions of 25 tokens")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--one-by-one", type=int, default=8, help="problems that are searched one after the other")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--tree", action="store_true", help="only the time per expansion, without servers")
    given = parser.parse_args()
    before = surroundings()
    if given.tree:
        report(expansions() | before, given.out)
        return
    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        result = measure(given, Path(folder)) | before
    report(result, given.out)
    print(json.dumps({name: result[name] for name in result if "_of_" in name}))


if __name__ == "__main__":
    main()
