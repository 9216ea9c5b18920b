"""STILL-1 in a few minutes: settings of still1/nano."""

from __future__ import annotations

SMALL = (
    "config.serving.policy_servers=1",
    "config.adapt.sampled.queries.draw.limit=160",
    "config.adapt.sampled.generate.samples=4",
    "config.adapt.sampled.shards=1",
    "config.improve.rounds=1",
    "config.improve.queries_per_round=60",
    "config.improve.held_out.draw.limit=24",
    "config.improve.choose.limit=120",
    "config.improve.reward.epochs=1",
    "config.improve.shards=1",
    'config.improve.search={"search": {"tokens": 60}, "learn": "solutions", '
    '"sampling": {"step_tokens": 32, "solution_tokens": 160, "request_seeds": false}, '
    '"sft": {"epochs": 1, "learning_rate": 1e-4, "batch": 16, "micro_batch": 8, "max_length": 320}}',
    'config.search.searches=[{"name": "mctsg-4", "search": {"tokens": 100}}, '
    '{"name": "sampling-4", "search": {"strategy": "sampling", "tokens": 100}, "answers": ["majority", "best"]}]',
    "config.search.problems.draw.limit=8",
    "config.evaluate.problems.draw.limit=8",
    "config.evaluate.generate.samples=2",
    "config.evaluate.generate.max_truncated_share=1",
)
