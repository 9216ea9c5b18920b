"""The input of style control: length and markdown of each solution and of the baseline's answer to that question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from evals.style_control import style_of
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import STYLES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import count_tokens, load_tokenizer
from tasks.evaluation.verdicts import solutions


@step
def count_styles(
    plan: Plan, store: Store, *, responses: Sequence[Ref], baselines: Ref, model: Ref, servers: Servers
) -> Ref:
    """Write the table `styles`: one row per question. Both sides' tokens are counted with the model's own tokenizer."""
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    ours = solutions(store, responses)

    def rows() -> Iterator[dict[str, Any]]:
        for baseline in read_rows(store, baselines):
            sides = {"": ours.get(baseline["query_id"], ""), "baseline_": baseline["text"]}
            counted = {
                f"{side}{name}": count
                for side, text in sides.items()
                for name, count in asdict(style_of(text, count_tokens(tokenizer, text))).items()
            }
            yield {"query_id": baseline["query_id"], **counted}

    return write_table(store, plan.step, plan.key, STYLES, batched(rows()), plan.provenance)
