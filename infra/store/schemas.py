"""The columns of the project's tables. Columns are not nullable unless they are `_optional`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

TEXT, FLAG, REAL = pa.string(), pa.bool_(), pa.float64()
INT32, INT64 = pa.int32(), pa.int64()
TEXTS = pa.list_(pa.string())


def _required(name: str, kind: Any) -> Any:
    return pa.field(name, kind, nullable=False)


def _optional(name: str, kind: Any) -> Any:
    return pa.field(name, kind, nullable=True)


EXAMPLES = pa.schema(
    [
        _required("example_id", TEXT),
        _required("query", TEXT),
        _required("thoughts", TEXT),
        _required("solution", TEXT),
        _required("topic", TEXT),
        _required("actions", TEXTS),
    ]
)

QUERIES = pa.schema(
    [
        _required("query_id", TEXT),
        _required("query", TEXT),
        _required("source", TEXT),
        _required("source_row", INT64),
        _optional("reference", TEXT),
        _optional("criteria", TEXTS),
        _optional("difficulty", INT32),
        _optional("topic", TEXT),
    ]
)

PROBLEMS = pa.schema(
    [
        _required("query_id", TEXT),
        _required("query", TEXT),
        _required("history", TEXT),
        _required("follow_ups", TEXTS),
        _optional("reference", TEXT),
        _optional("category", TEXT),
    ]
)
"""`history`: the turns before the query, as JSON."""

BASELINES = pa.schema(
    [
        _required("query_id", TEXT),
        _required("model", TEXT),
        _required("text", TEXT),
    ]
)

STYLES = pa.schema(
    [
        _required("query_id", TEXT),
        _required("tokens", INT32),
        _required("headers", INT32),
        _required("lists", INT32),
        _required("bold", INT32),
        _required("baseline_tokens", INT32),
        _required("baseline_headers", INT32),
        _required("baseline_lists", INT32),
        _required("baseline_bold", INT32),
    ]
)
"""The style counts of the model's solution and of the baseline's answer, for style control."""

JUDGEMENTS = pa.schema(
    [
        _required("request_id", TEXT),
        _required("answer", TEXT),
        _optional("labels", TEXTS),
        _optional("refusal", TEXT),
    ]
)
"""Labels are null if the answer was unreadable, or if the server refused the request for the reason `refusal`."""

TOPICS = pa.schema(
    [
        _required("name", TEXT),
        _optional("proposals", INT32),
    ]
)

CONTAMINATED = pa.schema(
    [
        _required("query_id", TEXT),
        _required("query", TEXT),
        _required("problem", TEXT),
        _required("problem_set", TEXT),
        _required("problem_row", INT64),
        _required("sign", TEXT),
    ]
)

RESPONSES = pa.schema(
    [
        _required("query_id", TEXT),
        _required("sample", INT32),
        _required("example_ids", TEXTS),
        _optional("seed", INT64),
        _required("text", TEXT),
        _optional("thoughts", TEXT),
        _optional("solution", TEXT),
        _required("violations", TEXTS),
        _required("finish_reason", TEXT),
        _required("prompt_tokens", INT32),
        _required("completion_tokens", INT32),
        _required("thought_tokens", INT32),
        _required("solution_tokens", INT32),
    ]
)

SCORES = pa.schema(
    [
        _required("query_id", TEXT),
        _required("sample", INT32),
        _optional("reward_model", TEXT),
        _required("reward", REAL),
        _required("format_reward", REAL),
        _optional("verified", FLAG),
        _required("total", REAL),
    ]
)

LONGCOT = pa.schema(
    [
        _required("query_id", TEXT),
        _required("sample", INT32),
        _required("query", TEXT),
        _required("thoughts", TEXT),
        _required("solution", TEXT),
        _required("format", TEXT),
        _required("reward", REAL),
    ]
)
"""An SFT instance. It is rendered when a model is trained on it, with that model's chat template."""

PAIRS = pa.schema(
    [
        _required("query_id", TEXT),
        _required("iteration", INT32),
        _required("prompt", TEXT),
        _required("chosen", TEXT),
        _required("rejected", TEXT),
        _required("chosen_sample", INT32),
        _required("rejected_sample", INT32),
        _required("chosen_score", REAL),
        _required("rejected_score", REAL),
        _required("chosen_tokens", INT32),
        _required("rejected_tokens", INT32),
    ]
)

GRADES = pa.schema(
    [
        _required("problem_id", TEXT),
        _required("sample", INT32),
        _optional("prediction", TEXT),
        _required("correct", FLAG),
        _optional("parts", INT32),
        _optional("correct_parts", INT32),
        _required("thought_tokens", INT32),
        _required("solution_tokens", INT32),
        _required("truncated", FLAG),
        _required("malformed", FLAG),
    ]
)

GUARDS = pa.schema(
    [
        _required("guard", TEXT),
        _optional("value", REAL),
        _optional("baseline", REAL),
        _optional("compared", REAL),
        _optional("limit", REAL),
        _required("tripped", FLAG),
        _optional("setting", TEXT),
    ]
)
"""`value` is the policy's figure, `baseline` pi_0's. `compared` is what `limit` bounds: a share itself, a ratio of
lengths, by how much an accuracy fell at least. `setting`: the parameter that holds the limit."""

VERDICTS = pa.schema(
    [
        _required("query_id", TEXT),
        _required("sample", INT32),
        _required("part", TEXT),
        _required("answer", TEXT),
        _optional("label", TEXT),
        _optional("score", REAL),
        _required("asks", INT32),
        _required("prompt_tokens", INT32),
        _required("completion_tokens", INT32),
        _optional("refusal", TEXT),
    ]
)
"""`part`: which judgement on an answer, such as `turn-2` or `game-1`. Label and score are null if it was unreadable, or
refused for the reason `refusal`."""
