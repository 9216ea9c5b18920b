"""A finished run of `bolt` in a store at no cost: real tables and manifests with made-up texts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from evals.problem import Problem
from infra.store.manifest import Provenance, Ref, begin, finish
from infra.store.schemas import GRADES, LONGCOT, PAIRS, PROBLEMS, QUERIES, RESPONSES, SCORES
from infra.store.schemas import SAMPLES as TRAINED
from infra.store.store import Store
from infra.store.tables import write_table
from infra.training.config import Method
from tasks.evaluation.problems import Verifiable, as_row, step_of
from tasks.rewards.group import NO_SIGNAL

STAGES = ("instruct", "in-context", "sft", "online-1")
TOPICS = ("days", "months", None)
SAMPLES = 2  # of each query, in every table
Rows = list[dict[str, Any]]


class MadeRun:
    """Writes the artifacts of one run.

    Args:
        texts: solutions of some answers, by (stage, problem, sample).
        quarantined: queries whose requests are quarantined, as (stage, problem) for held-out problems and as (source,
            query) for training queries.
        method: how stage 3 trains.
    """

    def __init__(
        self,
        store: Store,
        problems: int = 6,
        texts: Mapping[tuple[str, int, int], str] | None = None,
        benchmark: Verifiable = "short-answer",
        quarantined: Collection[tuple[str, int]] = (),
        method: Method = "dpo",
    ) -> None:
        self.store, self.texts, self.benchmark, self.quarantined = store, texts or {}, benchmark, quarantined
        self.method, self.steps = method, list[dict[str, Any]]()
        queries = [self.query(f"p{n}", f"which day is {n} ?", TOPICS[n % 3]) for n in range(problems)]
        if benchmark == "short-answer":
            held = self.table("problems", QUERIES, queries)
        else:
            read = [Problem(row["query_id"], row["query"], reference="sun", category=row["topic"]) for row in queries]
            held = self.table(step_of("problems", benchmark), PROBLEMS, [as_row(problem) for problem in read])
        for stage in STAGES:
            self.answer(stage, held, problems)
        self.train("", "stage 1", 5)
        self.train("-online-1", "online", 4)
        figures = {"value": 0.01, "baseline": 0.0, "compared": 0.01, "limit": 0.2, "tripped": False}
        guard = {"guard": "malformed share", **figures, "setting": "online.guards.max_malformed_share"}
        self.summary = {
            "run": "able-eagle",
            "model": f"{method}-1/k",
            "benchmark": benchmark,
            "stages": [self.stage(name, problems) for name in STAGES],
            "gains": [{"from": "sft", "to": "online-1", "gain": 0.1, "low": -0.1, "high": 0.2}],
            "guards": [{"policy": number, **guard} for number in (0, 1)],
            "steps": self.steps,
        }
        store.write_bytes("runs/able-eagle/summary.json", json.dumps(self.summary).encode())

    def table(self, step: str, schema: Any, rows: Rows, counts: Any = None, **inputs: Ref) -> Ref:
        named = {name.replace("__", "/"): ref for name, ref in inputs.items()}
        made = write_table(self.store, step, "k", schema, [rows], Provenance(inputs=named), counts=counts)
        self.record(step, made.rows)
        return made

    def record(self, step: str, rows: int, key: str = "k") -> None:
        self.steps.append({"name": step, "key": key, "seconds": 1.5, "cached": False, "rows": rows})

    def model(self, step: str, **logged: float) -> None:
        counts = {"tokens_seen": 1200, "curve": [{"step": n, "loss": 1 / n, **logged} for n in (1, 2, 3)]}
        counts["curve"].append({"step": 3, "train_runtime": 2.0})
        finish(self.store, "model", step, "k", [], [], Provenance(), counts, begin(self.store, step, "k"))
        self.record(step, 0)

    def query(self, query_id: str, text: str, topic: str | None) -> dict[str, Any]:
        plain = {"query_id": query_id, "query": text, "source": "f", "source_row": 0, "reference": "sun"}
        return {**plain, "criteria": None, "difficulty": 5, "topic": topic, "step_count": None}

    def response(
        self, query_id: str, sample: int, solution: str, thoughts: str | None, **changes: Any
    ) -> dict[str, Any]:
        plain = {"example_ids": [], "seed": None, "violations": [], "finish_reason": "stop", "prompt_tokens": 5}
        tokens = {"completion_tokens": 9, "thought_tokens": 4 if thoughts else 0, "solution_tokens": 4}
        texts = {"text": f"{thoughts} {solution}", "thoughts": thoughts, "solution": solution}
        return {"query_id": query_id, "sample": sample, **texts, **plain, **tokens, **changes}

    def answer(self, stage: str, held: Ref, problems: int) -> None:
        for how in ("sampled", "greedy"):
            samples = range(SAMPLES if how == "sampled" else 1)
            shards: list[Rows] = [[], []] if how == "sampled" else [[]]
            grades: Rows = []
            for n in (n for n in range(problems) if (stage, n) not in self.quarantined):
                for sample in samples:
                    right = (n + sample + STAGES.index(stage)) % 2 == 0
                    chosen = self.texts.get((stage, n, sample)) if how == "sampled" else None
                    solution = chosen or f"answer : {'sun' if right else 'mon'} ."
                    thoughts = None if stage == "instruct" else chosen or f"plan of {stage} for {n} ."
                    faults = {"violations": ["unclosed_thoughts"]} if (stage, n) == ("sft", 1) else {}
                    shards[n % len(shards)].append(self.response(f"p{n}", sample, solution, thoughts, **faults))
                    grades.append(
                        {
                            "problem_id": f"p{n}",
                            "sample": sample,
                            "prediction": chosen or ("sun" if right else None),
                            "correct": right,
                            "thought_tokens": 4,
                            "solution_tokens": 4,
                            "truncated": False,
                            "malformed": bool(faults),
                        }
                    )
            step, counts = step_of("answers", self.benchmark, stage, how), {"completion_tokens": 9}
            refs = [
                write_table(self.store, step, f"k{n}", RESPONSES, [rows], Provenance(), counts=counts)
                for n, rows in enumerate(shards)
            ]
            self.record(step, sum(ref.rows for ref in refs), key="k0")
            inputs = {f"responses__{n}": ref for n, ref in enumerate(refs)}
            self.table(step_of("grades", self.benchmark, stage, how), GRADES, grades, **inputs, problems=held)

    def train(self, source: str, name: str, queries: int) -> None:
        """Queries, samples, scores, and what was made from them: LongCoT data and SFT, or pairs and DPO."""
        self.table(
            f"queries{source}", QUERIES, [self.query(f"q{n}", f"{name} query {n}", "days") for n in range(queries)]
        )
        both = [(f"q{n}", sample) for n in range(queries) for sample in range(SAMPLES)]
        missing = {f"q{n}" for where, n in self.quarantined if where == source}
        rows = [self.response(q, sample, f"answer : {sample} .", "plan .") for q, sample in both if q not in missing]
        drawn = self.table(f"responses{source}", RESPONSES, rows, {"completion_tokens": 90})
        if not source:
            drawn = self.table("filtered", RESPONSES, rows, {"read": len(rows), "kept": len(rows)}, responses__0=drawn)
        values = {"reward_model": "r", "format_reward": 1.0}
        scores = [
            {"query_id": q, "sample": s, "reward": s - 0.5, "total": s + 0.5, **values}
            for q, s in both
            if q not in missing
        ]
        self.table(
            f"scores{source}", SCORES, scores, {"scored": len(both), "without a solution": 0}, responses__0=drawn
        )
        if source and self.method == "dpo":
            self.pairs(queries, drawn)
        elif source:
            self.samples(both, queries, drawn)
        else:
            texts = {"query": "q", "thoughts": "t", "solution": "s", "format": "bolt"}
            ids = [f"q{n}" for n in range(queries) if f"q{n}" not in missing]
            kept = [{"query_id": query_id, "sample": 1, **texts, "reward": 0.5} for query_id in ids]
            counts = {"scored": len(both), "below the percentile": queries, "not the best of its query": 0}
            self.table("longcot", LONGCOT, kept, {**counts, "kept": queries, "threshold": 0.0}, responses__0=drawn)
            self.model("sft")

    def pairs(self, queries: int, drawn: Ref) -> None:
        texts = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_sample": 1, "rejected_sample": 0}
        figures = {"chosen_score": 1.5, "rejected_score": 0.5, "chosen_tokens": 9, "rejected_tokens": 9, "iteration": 1}
        rows = [{"query_id": f"q{n}", **texts, **figures} for n in range(queries - 1)]
        counts = {"queries": queries, "kept": queries - 1, "dropped: equal scores": 1}
        self.table("pairs-1", PAIRS, rows, counts, responses__0=drawn)
        parts = ("accuracies", "margins", "chosen", "rejected")
        self.model("dpo-1", **{f"rewards/{part}": 0.5 for part in parts})

    def samples(self, both: list[tuple[str, int]], queries: int, drawn: Ref) -> None:
        plain = {"iteration": 1, "prompt": "p", "response": "r", "ended": True, "tokens": 9}
        rows = [{"query_id": q, "sample": s, **plain, "reward": s + 0.5} for q, s in both]
        counts = {"samples": len(rows), "queries": queries, NO_SIGNAL: 1}
        self.table("samples-1", TRAINED, rows, counts, responses__0=drawn)
        self.model(f"{self.method}-1", **dict.fromkeys(("reward", "kl_to_pi_0", "clip_ratio/region_mean"), 0.5))

    def stage(self, name: str, problems: int) -> dict[str, Any]:
        low_high = {"accuracy_low": 0.4, "accuracy_high": 0.6, "tokens_low": 7.0, "tokens_high": 9.0}
        figures = {"accuracy": 0.5, "greedy_accuracy": 0.5, "thought_tokens": 4.0, "solution_tokens": 4.0}
        shares = {"truncated": 0.0, "malformed": 0.0}
        group = {"first": 2, "last": 3, "problems": problems, **figures, **low_high}
        counted = {"problems": problems, "samples": SAMPLES * problems, "by_steps": [group]}
        return {"name": name, **counted, **figures, **low_high, **shares}
