"""Records of the benchmarks in the layouts of their authors, and files with such records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.queries.sources import Source


def file_of(path: Path, records: Iterable[dict[str, Any]]) -> Source:
    """Write the records to a .jsonl or .parquet file, and return it as a source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(path=str(path))


def math500(number: int, answer: str = "42", **changes: Any) -> dict[str, Any]:
    record = {"problem": f"What is ${number}$?", "solution": f"It is $\\boxed{{{answer}}}$.", "answer": answer}
    record |= {"subject": "Algebra" if number % 2 else "Geometry", "level": 2}
    return {**record, "unique_id": f"test/algebra/{number}.json", **changes}


def zebra(number: int, **changes: Any) -> dict[str, Any]:
    solution = {"header": ["House", "Name", "Pet"], "rows": [["1", "Eric", "cat"], ["2", "Arnold", "dog"]]}
    record = {"id": f"lgp-test-2x2-{number}", "size": "2*2", "puzzle": f"There are 2 houses. Puzzle {number}."}
    return {**record, "solution": solution, "created_at": "2024-07-03", **changes}


def mtbench(number: int, category: str = "writing", **changes: Any) -> dict[str, Any]:
    return {"question_id": number, "category": category, "turns": [f"first {number}", f"then {number}"], **changes}


def mtbench_reference(number: int, *turns: str) -> dict[str, Any]:
    answers = list(turns or (f"truth {number}.1", f"truth {number}.2"))
    return {"question_id": number, "answer_id": "x", "model_id": "gpt-4", "choices": [{"index": 0, "turns": answers}]}


def arena(number: int, category: str = "hard_prompt", **changes: Any) -> dict[str, Any]:
    return {"uid": f"u{number}", "category": category, "subcategory": "s", "prompt": f"hard {number}", **changes}


def arena_answer(number: int, model: str = "o3-mini-2025-01-31", text: str | None = None) -> dict[str, Any]:
    answer = {"answer": f"{model} on {number}" if text is None else text, "thought": "the baseline's secret thoughts"}
    messages = [{"role": "user", "content": f"hard {number}"}, {"role": "assistant", "content": answer}]
    return {"uid": f"u{number}", "ans_id": "x", "model": model, "messages": messages, "tstamp": 1.0}


def wildbench(number: int, **changes: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"earlier {number}"},
        {"role": "assistant", "content": f"said {number}"},
        {"role": "user", "content": f"wild {number}"},
    ]
    record = {"session_id": f"s{number}", "conversation_input": turns, "checklist": [f"check {number}?", "clear?"]}
    tags = {"primary_tag": "Coding & Debugging", "secondary_tags": ["Math"], "references": {"gpt-4": "unused"}}
    return {**record, **tags, **changes}


def wildbench_answer(number: int, text: str | None = None, model: str = "gpt-4-turbo") -> dict[str, Any]:
    return {
        "session_id": f"s{number}",
        "generator": model,
        "output": [f"{model} on {number}" if text is None else text],
    }
