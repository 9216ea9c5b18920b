"""Solutions for thoughts that have none (STILL-2): a model that knows the format goes on after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cot_formats.responses import LongFormat, continuation, opened_part, parse_response, unfinished
from infra.serving.ledger import Ledger
from infra.serving.servers import Servers
from infra.serving.shard_ledger import places, shard_ledger
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import DISTILLED
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import count_tokens, generation_prefix, load_tokenizer, neutralise, prompt_text
from tasks.responses.generate import OUTSIDE_KEY, GenerateConfig, Limits, sample_groups
from tasks.responses.perplexity import name_of


def continued_prompt(tokenizer: Any, row: Mapping[str, Any], format: LongFormat) -> str:
    """The chat prompt of a text's query, with the beginning of a response: its thoughts, up to the solution.

    What the chat template itself opens at the end of the prompt is not repeated.
    """
    prompt = prompt_text(tokenizer, [{"role": "user", "content": row["query"]}])
    begun = unfinished(format, neutralise(row["thoughts"], tokenizer))
    return prompt + continuation(begun, opened_part(generation_prefix(tokenizer), format))


@step(outside_key=OUTSIDE_KEY, serves={"model": "policy"})
def continue_thoughts(
    plan: Plan,
    store: Store,
    *,
    config: GenerateConfig,
    distilled: Ref,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the continued texts of `distilled` with the solutions that `model` writes after their thoughts.

    Truncated and malformed solutions are left out and counted; the table may be empty.

    Raises as `tasks.responses.generate.generate`.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    format: LongFormat = config.format  # type: ignore[assignment]  # checked by the flow
    funnel, rows, prompts = Counter[str](), dict[str, dict[str, Any]](), dict[str, str]()
    for row in read_rows(store, distilled):
        if not row["continued"] or row["solution"] is not None:
            continue
        try:
            prompts[name_of(row)] = continued_prompt(tokenizer, row, format)
            rows[name_of(row)] = row
        except ValueError:  # without its control tokens it spells a delimiter
            funnel["read"] += 1
            funnel[f"dropped: cannot be written as {format}"] += 1
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        limits = Limits(plan.step, config, len(prompts), places(store, ledger))
        for name in prompts:
            if name in ledger:
                limits.add(name, ledger[name])
        if owed := [name for name in prompts if name not in ledger]:
            sample_groups(
                plan.step, config, [owed], prompts.__getitem__, tokenizer, servers.policies(model), ledger, limits
            )
        found = solved_rows(tokenizer, rows, ledger, format, funnel)
        schema = DISTILLED
        made = write_table(store, plan.step, plan.key, schema, batched(found), plan.provenance, counts=lambda: funnel)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def solved_rows(
    tokenizer: Any, rows: Mapping[str, dict[str, Any]], ledger: Ledger, format: LongFormat, funnel: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows with their solutions; `funnel` counts those that have none, by reason."""
    for name, row in rows.items():
        funnel["read"] += 1
        record = ledger[name]
        sample = None if "quarantined" in record else record["samples"][0]
        if sample is None or sample["finish_reason"] != "stop":
            funnel["dropped: quarantined" if sample is None else "dropped: truncated"] += 1
            continue
        begun = unfinished(format, neutralise(row["thoughts"], tokenizer))
        parsed = parse_response(begun + sample["text"], format, ended=True)
        if parsed["violations"]:
            funnel[f"dropped: malformed: {parsed['violations'][0]}"] += 1
            continue
        funnel["kept"] += 1
        length = count_tokens(tokenizer, parsed["solution"])
        yield {**row, "solution": parsed["solution"], "solution_tokens": length}
