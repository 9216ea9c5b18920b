"""`python -m flows curate-examples/default`: choose in-context examples from candidates (BOLT section 3.1.1).

A report says why each candidate was taken or rejected.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.bootstrap import curated
from flows.stages.common import A_MODEL, ALERTS, Common
from flows.stages.run import TASK_RUNNER, begin
from flows.stages.sampling import reward_model_of
from infra.store.manifest import Ref, read_manifest
from infra.text.markdown import plain
from tasks.curation.choose import Room
from tasks.examples.read import ExamplesConfig
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig


class CurateConfig(Common):
    """Parameters of the flow `curate-examples`."""

    examples: ExamplesConfig = Field(ExamplesConfig(), description="The candidates, and what is required of them.")
    model: str | None = Field(
        None,
        description=f"Model that will read the examples; only its tokenizer is used: {A_MODEL}. If given, any examples "
        "drawn for a prompt must fit `serving.policy.max_model_len`; if omitted, lengths are not checked.",
    )
    reward_model: str | None = Field(
        None,
        description=f"Outcome reward model that ranks the candidates by query and solution: {A_MODEL}. If omitted, "
        "they keep the order of their files or rows.",
    )
    prompt: PromptConfig = Field(PromptConfig(), description="How in-context examples and a query become a prompt.")
    max_tokens: int = Field(
        GenerateConfig().max_tokens,
        ge=1,
        description="Longest response, in tokens; the context must hold it beside the examples.",
    )


def report(counts: dict[str, Any]) -> str:
    """Which candidates were taken or rejected, and why, as Markdown; their texts are escaped."""
    found = counts["candidates"]
    head = ("example", "topic", "words", "tokens", "reward", "verdict")
    lines = [f"{counts['taken']} of {counts['read']} candidates taken.", "", _row(head), _row(["---"] * len(head))]
    for each in found:
        reward = "" if each["reward"] is None else f"{each['reward']:.3f}"
        verdict = f"rejected: {each['why']}" if each["rejected"] else "taken"
        cells = (each["example_id"], each["topic"], each["words"], each["tokens"] or "", reward, verdict)
        lines.append(_row([plain(str(cell)) for cell in cells]))
    lines += ["", "## Where the thoughts show the four actions"]
    for each in found:
        lines += ["", f"### {plain(each['example_id'])}", ""]
        for action, shown in each["evidence"].items():
            places = ", ".join(f"{start}-{end}" for start, end in shown["spans"])
            lines.append(f"- **{action}** ({len(shown['spans'])}, at {places}): {plain(shown['quote'])}")
        lines += [] if each["evidence"] else ["none found"]
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


@flow(task_runner=TASK_RUNNER, **ALERTS)
def curate_examples(config: CurateConfig) -> Ref:
    """Check and rank candidates for in-context examples, and write the table `examples`."""
    with begin(config) as run:
        model = run.model(config.model) if config.model else None
        reward_model = reward_model_of(run, config.reward_model)
        room = Room(
            prompt=config.prompt, max_tokens=config.max_tokens, max_model_len=config.serving.policy.max_model_len
        )
        examples = curated(run, config.examples, model, room if model else None, reward_model)
        if not run.dry:
            text = report(read_manifest(run.store, examples)["counts"])
            create_markdown_artifact(text, key="bolt-examples", description="Which examples were taken, and why")
        return examples
