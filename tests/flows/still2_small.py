"""STILL-2 in a few minutes: settings of still2/nano, and two sources of texts to imitate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "config.serving.policy_servers=1",
    "config.imitate.choose.share=1.0",
    "config.explore.problems.draw.limit=16",
    "config.explore.rollouts=4",
    "config.explore.generate.samples=2",
    "config.explore.shards=1",
    "config.improve.rounds=1",
    "config.sft.epochs=8",
    "config.evaluate.problems.draw.limit=8",
    "config.evaluate.generate.samples=2",
    "config.evaluate.generate.max_truncated_share=1",
)


def lessons(folder: Path) -> list[dict[str, Any]]:
    """Two sources: whole texts, and texts that are all thoughts."""
    rows = [json.loads(line) for line in (ROOT / "nano/data/teacher.jsonl").read_text().splitlines()[:240]]
    thoughts = [
        {**row, "combined_text": row["combined_text"].partition("<|end_of_thought|>")[0].split("|>")[1].strip()}
        for row in rows[200:]
    ]
    for name, held in (("whole", rows[:200]), ("thoughts", thoughts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return [{"path": str(folder / "whole.jsonl")}, {"path": str(folder / "thoughts.jsonl"), "continued": True}]
