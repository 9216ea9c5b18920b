"""Measure tokens generated per second by our generation step, against bare vLLM on the same requests and options.

    python bench/generate.py [--model nano/models/instruct] [--requests 2000] [--samples 2] [--rounds 3]

Ours is the step `generate` as the flows run it, from reading the queries to the finished table: prompts are rendered,
requests sent over HTTP, answers kept in the ledger, texts parsed, Parquet and manifest written. Bare is one call of
`vllm.LLM.generate` over the same token ids in a process of its own, built from the server's own command line. An option
that it does not set (such as --max-num-batched-tokens) has vLLM's default of each entry point. Both stay up for the
whole run, are warmed up with one unmeasured round and then take turns. Start-up is timed separately. Figures are
medians over the rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import report, surroundings
from bench.serving import bare_engine, imported, prompts_parser
from infra.serving.servers import Servers, ServingConfig
from infra.serving.vllm_server import ServerOptions, VllmServer, _environment, runs_on_cpu
from infra.settings import Settings
from infra.steps.step import Job, Plan
from infra.store.manifest import Provenance, Ref
from infra.store.store import Store
from infra.store.tables import read_rows
from infra.text.chat import load_tokenizer
from tasks.curation.choose import choose_examples
from tasks.examples.read import ExamplesConfig, example_files
from tasks.queries.clean import CleanConfig, clean_queries
from tasks.queries.collect import collect_queries
from tasks.queries.distinct import drop_duplicates
from tasks.queries.draw import DrawConfig, subsample
from tasks.queries.sources import Source
from tasks.responses.generate import GenerateConfig, generate, request_seed
from tasks.responses.prompt import PromptConfig, draw_examples, in_context_text

Prompts = list[tuple[list[int], int | None]]  # token ids and seed


class Ours:
    """The project's generation step in an artifact store of its own."""

    def __init__(
        self, given: argparse.Namespace, settings: Settings, servers: Servers, store: Store, model: Ref
    ) -> None:
        self.settings = settings
        self.config = GenerateConfig(
            samples=given.samples,
            max_tokens=given.max_tokens,
            in_flight=given.in_flight,
            request_seeds=not runs_on_cpu(),
            max_truncated_share=1,
        )
        self.prompt = PromptConfig(template=given.template, example_template=given.example_template)
        self.servers, self.store, self.model = servers, store, model
        collected = self._made(collect_queries, "collected", source=Source(path=str(given.queries)))
        clean = CleanConfig(min_characters=1, languages=())  # each query once
        cleaned = self._made(clean_queries, "cleaned", config=clean, sources=[collected])
        distinct = self._made(drop_duplicates, "distinct", near_duplicates=None, queries=[cleaned])
        draw = DrawConfig(limit=given.requests)
        self.queries = self._made(subsample, "queries", config=draw, queries=distinct)
        count = len(example_files(ExamplesConfig(path=given.examples)))
        examples = ExamplesConfig(
            path=given.examples, count=count, max_per_topic=count, min_actions=0, min_words=1, near_duplicates=1
        )
        self.examples = self._made(choose_examples, "examples", config=examples, servers=servers)

    def _made(self, task: Any, name: str, **arguments: Any) -> Ref:
        ref: Ref = task.task.fn(Job(Plan(step="bench", key=name, provenance=Provenance()), self.settings, arguments))
        return ref

    def prompts(self) -> Prompts:
        """The requests of the step, in its order."""
        tokenizer = load_tokenizer(Path(self.store.local_path(f"{self.model.step}/{self.model.key}")))
        examples = list(read_rows(self.store, self.examples))
        found = []
        for query in read_rows(self.store, self.queries):
            shown = draw_examples(examples, self.prompt.examples, self.config.seed, query["query_id"])
            text = in_context_text(self.prompt, shown, query["query"], tokenizer, self.config.format)
            seed = request_seed(self.config.seed, query["query_id"]) if self.config.request_seeds else None
            ids = tokenizer.encode(text, add_special_tokens=False)
            found.append(([example["example_id"] for example in shown], (ids, seed)))
        return [request for _, request in sorted(found, key=lambda pair: pair[0])]

    def round(self, number: int) -> tuple[float, int, int]:
        """Seconds, generated tokens and prompt tokens of one run of the step."""
        began = time.perf_counter()
        ref = self._made(
            generate,
            f"responses-{number}",
            config=self.config,
            queries=self.queries,
            model=self.model,
            servers=self.servers,
            prompt=self.prompt,
            examples=self.examples,
        )
        seconds = time.perf_counter() - began
        rows = list(read_rows(self.store, ref, ["completion_tokens", "prompt_tokens"]))
        return seconds, sum(r["completion_tokens"] for r in rows), sum(r["prompt_tokens"] for r in rows)


class Bare:
    """`vllm.LLM` in a process of its own."""

    def __init__(self, command: list[str], requests: Prompts, config: GenerateConfig, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, command, requests, config, log))
        began = time.perf_counter()
        self.process.start()
        other.close()
        self.log = log
        self.engine: dict[str, Any] = self._answer()
        self.startup_s = time.perf_counter() - began

    def round(self, _number: int) -> tuple[float, int, int]:
        self.pipe.send("go")
        seconds, generated, prompt = self._answer()
        return seconds, generated, prompt

    def _answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"bare vLLM ended early; log: {self.log}\n{self.log.read_text()[-3000:]}") from None

    def close(self) -> None:
        self.pipe.close()
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: Connection, command: list[str], requests: Prompts, config: GenerateConfig, log: Path) -> None:
    """The bare process: start with the server's command line, then run one round per message."""
    llm = bare_engine(command, log)
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": ids} for ids, _ in requests]
    sampling = {
        "n": config.samples,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "skip_special_tokens": False,
    }
    params = [SamplingParams(**sampling, seed=seed) for _, seed in requests]
    scheduler = llm.llm_engine.vllm_config.scheduler_config
    shown = ("max_num_seqs", "max_num_batched_tokens")
    pipe.send({name: getattr(scheduler, name) for name in shown})
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        generated = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
        pipe.send((seconds, generated, sum(len(o.prompt_token_ids) * len(o.outputs) for o in outputs)))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both contenders on the same requests; medians, spread and start-up times."""
    settings, store, model = imported(given.model, folder)
    options = ServerOptions(
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        kv_cache_gib=given.kv_cache_gib,
        gpu_memory_utilization=0.45,  # both are up at once
        extra_args=tuple(given.engine.split()),
    )
    with Servers(ServingConfig(policy=options, reward=options), store, folder) as servers:
        ours = Ours(given, settings, servers, store, model)
        began = time.perf_counter()
        server = servers.generation(model)
        assert isinstance(server, VllmServer)
        startup = {"ours": time.perf_counter() - began}
        os.environ.update(_environment("generate"))
        bare = Bare([*server.command()[4:], "--disable-log-stats"], ours.prompts(), ours.config, folder / "bare.log")
        try:
            startup["bare"] = bare.startup_s
            found = _rounds({"ours": ours.round, "bare": bare.round}, given.rounds)
        finally:
            bare.close()
    speed = {name: statistics.median(tokens / seconds for seconds, tokens, _ in rows) for name, rows in found.items()}
    if len({prompt for rows in found.values() for _, _, prompt in rows}) != 1:
        raise SystemExit(f"the contenders had different prompts: {found}")
    return {
        "bench": "generate",
        "model": str(given.model),
        "requests": given.requests,
        "samples": given.samples,
        "max_tokens": given.max_tokens,
        "rounds": given.rounds,
        "engine": {"threads": os.environ.get("OMP_NUM_THREADS"), "bare": bare.engine},
        "tokens_per_s": {name: round(value) for name, value in speed.items()},
        "ours_of_bare": round(speed["ours"] / speed["bare"], 3),
        "spread": {
            name: round((max(t / s for s, t, _ in rows) - min(t / s for s, t, _ in rows)) / speed[name], 3)
            for name, rows in found.items()
        },
        "tokens_per_round": {name: round(statistics.mean(t for _, t, _ in rows)) for name, rows in found.items()},
        "seconds_per_round": {name: [round(s, 2) for s, _, _ in rows] for name, rows in found.items()},
        "startup_s": {name: round(value, 1) for name, value in startup.items()},
    }


def _rounds(contenders: dict[str, Any], rounds: int) -> dict[str, list[tuple[float, int, int]]]:
    """One unmeasured round, then `rounds` in which the order alternates."""
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        order = list(contenders) if number % 2 else list(reversed(contenders))
        for name in order:
            taken = contenders[name](number)
            if number:
                found[name].append(taken)
    return found


def main() -> None:
    parser = prompts_parser(__doc__)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--in-flight", type=int, default=160, help="requests; times --samples above --max-num-seqs")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--kv-cache-gib", type=float, default=1.0, help="for each of the two engines")
    parser.add_argument("--engine", default="", help="further vLLM options for both, as on its command line")
    given = parser.parse_args()
    before = surroundings()
    with tempfile.TemporaryDirectory(prefix="bench-generate-") as folder:
        result = measure(given, Path(folder)) | before
    report(result, given.out)
    print(f"\n{'':6}{'tok/s':>9}{'spread':>9}{'start-up, s':>13}   of bare")
    for name, value in result["tokens_per_s"].items():
        share = value / result["tokens_per_s"]["bare"]
        print(f"{name:6}{value:9,}{result['spread'][name]:9.3f}{result['startup_s'][name]:13.1f}   {share:.2f}")


if __name__ == "__main__":
    main()
