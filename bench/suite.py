"""Run the whole evaluation suite with nano models, offline: real problem files, real vLLM, a judge of random weights.

    python bench/suite.py DATA [--limit 40] [--model NAME=PATH ...]

DATA is a folder with the authors' files: math500/math500.jsonl, math_l5/problems.jsonl, zebra/zebra_puzzles_gold.jsonl,
mtbench/mt_bench_question.jsonl and mt_bench_reference_answer_gpt-4.jsonl, arenahard/question_v0.1.jsonl,
question_v2.0.jsonl and answers_*.jsonl of a baseline each, queries/wildchat-if.jsonl. WildBench's own conversations
are not available offline; single turns of real users with a checklist of two items replace them.

The scores mean nothing: the nano models know 166 words, and the judge's weights are random (`nano.judge`), with answers
whose form its server constrains. The run shows that the machinery works: run it again, and every step is Cached; kill
it anywhere and run it again, and it resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT
from flows.evaluate import EvaluateConfig, evaluate
from nano.judge import make_judge

CONTEXT = 16_384  # tokens; the nano models are trained for 1,024, and their output beyond that is noise
JUDGE_CONTEXT = 65_536
LONGER = ("--hf-overrides", json.dumps({"max_position_embeddings": JUDGE_CONTEXT}))
FORMS = {
    "mt-bench": r"Rating: \[\[([1-9]|10)\]\]",
    "arena-hard-v0.1": r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]",
    "arena-hard-v2.0": r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]",
    "wildbench": r'\{"score": "([1-9]|10)"\}',
}
"""The form that the judge's server constrains its answers to, as a regular expression."""


def wildbench_substitute(data: Path, folder: Path, limit: int) -> Path:
    """Write conversations in WildBench's layout, made of first turns of real users."""
    path = folder / "wildbench.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with (data / "queries" / "wildchat-if.jsonl").open() as lines, path.open("w") as made:
        for number, line in enumerate(islice(lines, limit)):
            row: dict[str, Any] = {
                "session_id": f"stand-in-{number}",
                "conversation_input": [{"role": "user", "content": json.loads(line)["query"]}],
                "checklist": ["Does the response do what was asked?", "Is it correct?"],
                "primary_tag": ["Math", "Planning", "Editing", "Advice seeking", "Coding & Debugging"][number % 5],
                "secondary_tags": [],
            }
            made.write(json.dumps(row) + "\n")
    return path


def configured(data: Path, models: dict[str, str], limit: int) -> EvaluateConfig:
    """The configuration: all benchmarks, the first `limit` problems of each."""
    judge = ROOT / ".bolt" / "judge"
    if not judge.is_dir():
        make_judge(judge, longest=JUDGE_CONTEXT)

    def of(name: str, path: Path, **more: Any) -> dict[str, Any]:
        samples = {"max_tokens": 64, "request_seeds": False, "max_truncated_share": 1.0}
        asked = {"model": str(judge), "max_tokens": 32, "form": FORMS.get(name)}
        judged = {"judge": asked} if name in FORMS else {}
        how = {"samples": 1, "temperature": 0.0} if judged else {"samples": 2}
        problems = {"sources": [{"path": str(path)}], "draw": {"min_difficulty": 0, "limit": limit}}
        return {"benchmark": name, "problems": problems, "generate": {**samples, **how}, "shards": 1, **judged, **more}

    mt, arena = data / "mtbench", data / "arenahard"
    references = {"path": str(mt / "mt_bench_reference_answer_gpt-4.jsonl")}
    server = {"max_num_seqs": 64, "kv_cache_gib": 1, "extra_args": LONGER}
    return EvaluateConfig.model_validate(
        {
            "serving": {"policy": {**server, "max_model_len": JUDGE_CONTEXT}, "reward": {"max_model_len": CONTEXT}},
            "models": [{"name": name, "model": path, "format": "plain"} for name, path in models.items()],
            "benchmarks": [
                of("math500", data / "math500" / "math500.jsonl"),
                of("math-level5", data / "math_l5" / "problems.jsonl"),
                of("zebralogic", data / "zebra" / "zebra_puzzles_gold.jsonl"),
                of("mt-bench", mt / "mt_bench_question.jsonl", references=references),
                of(
                    "arena-hard-v0.1",
                    arena / "question_v0.1.jsonl",
                    baselines=[{"path": str(arena / "answers_v0.1_gpt-3.5-turbo-0125.jsonl")}],
                ),
                of(
                    "arena-hard-v2.0",
                    arena / "question_v2.0.jsonl",
                    baselines=[{"path": str(arena / "answers_v2.0_o3-mini-2025-01-31.jsonl")}],
                ),
                of("wildbench", wildbench_substitute(data, ROOT / ".bolt" / "suite", limit)),
            ],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=40, help="problems of each benchmark")
    parser.add_argument("--model", action="append", default=[], help="NAME=PATH or NAME=STEP/KEY; default: instruct")
    given = parser.parse_args()
    models = dict(each.split("=", 1) for each in given.model) or {
        "instruct": str(ROOT / "nano" / "models" / "instruct")
    }
    made = evaluate(configured(given.data.resolve(), models, given.limit))
    print(made["path"] if made else "")


if __name__ == "__main__":
    main()
