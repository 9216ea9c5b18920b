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
    "config.evaluate.problems.draw.limit=8",
    "config.evaluate.generate.samples=2",
    "config.evaluate.generate.max_truncated_share=1",
)
