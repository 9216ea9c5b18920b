"""The card of a trained model: what it is, what it was trained on and how, and an example of its format.

The card is a file of the model, and so part of its digest. It has no time, no speed and no path: the same training
gives the same card. Prompts and answers come from users and models, so they stand in blocks of code that they cannot
close.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from cot_formats.responses import Format, opened_part, parse_response
from infra.errors import BadInput
from infra.steps.step import Plan
from infra.store.manifest import BadArtifact, Ref, expect
from infra.store.store import Store
from infra.text.markdown import as_text, fenced, markdown_table

CARD = "README.md"
OPEN_AT_A_CUT = {"unclosed_thoughts", "missing_solution", "unclosed_solution", "empty_thoughts", "empty_solution"}
"""Violations that more text could mend. An answer that was cut may have them and still be in the format so far."""
TRAINED_BY = {
    "sft": ("LongCoT supervised fine-tuning", "longcot", "model"),
    "dpo": ("iterative online DPO", "pairs", "policy"),
    "rloo": ("iterative online RLOO", "samples", "policy"),
    "reinforce": ("iterative online REINFORCE", "samples", "policy"),
    "grpo": ("iterative online GRPO", "samples", "policy"),
}
"""By the beginning of a step's name: what it does, and its inputs that are the data and the model."""
FORMAT = """\
Format of the responses: `{format}`. {verdict} It is a greedy answer to the first prompt of the training data. Special
tokens are shown.

Prompt:

{prompt}

Answer:

{answer}"""
USE = """\
```
vllm serve FOLDER
```

FOLDER is the folder of this file, or the model's name on the Hub. Ask it through `/v1/chat/completions`, with room for
long thoughts in `max_tokens`. The chat template and the settings of generation are those of the base model."""
FIGURES = ("samples", "dropped", "skipped", "steps", "tokens", "tokens_seen", "final_loss", "mean_loss")


def judged(answer: Mapping[str, Any], format: Format | None) -> dict[str, Any]:
    """The answer that the trained model gave at the gate, with the format's verdict.

    Args:
        answer: `prompt`, `text`, and whether it `ended` by itself.
        format: the format of the data; None if it is not known, and then only an empty answer is a violation.

    Returns:
        The answer with `format`, its `violations`, and whether it is `in_format`, so far as it goes if it was cut.
    """
    parsed = parse_response(
        answer["text"],
        format or "plain",
        opened=bool(format and opened_part(answer["prompt"], format)),
        ended=answer["ended"],
    )
    names: list[str] = parsed["violations"]
    faults = names if answer["ended"] else [name for name in names if name not in OPEN_AT_A_CUT]
    return {**answer, "format": format, "violations": names, "in_format": not faults}


def check_format(answer: Mapping[str, Any], setting: str, tokens: int) -> None:
    """Refuse to publish a model whose `judged` answer is off the format. Raises `BadInput`."""
    if not answer["in_format"]:
        raise BadInput(
            f"{setting}: {verdict(answer, tokens)} It said {answer['text'][:300]!r}. Train it on more rows or for more "
            f"epochs; or publish it as it is, without another training, by setting {setting}.require_format to false"
        )


def verdict(answer: Mapping[str, Any], tokens: int) -> str:
    """What a reader should know of the example, in one or two sentences."""
    if answer["in_format"] and answer["ended"]:
        return "The answer is in the format." if answer["format"] else "The answer ended by itself."
    if answer["in_format"]:
        return f"The answer was cut after {tokens} tokens and is in the format so far."
    end = "" if answer["ended"] else f" (it was cut after {tokens} tokens)"
    return f"The trained model's answer is off the format{end}: {', '.join(answer['violations'])}."


def model_card(store: Store, plan: Plan, report: Mapping[str, Any]) -> str:
    """The card of the model that the step `plan` trained, with the Hub's front matter.

    `report` is the trainer's, its `answer` as `judged` returns it.
    """
    answer = report["answer"]
    kind = next(name for name in TRAINED_BY if plan.step.startswith(name))
    method, data, model = TRAINED_BY[kind]
    inputs, recipe = plan.provenance.inputs, dict(plan.provenance.config.get("config") or {})
    data = data if data in inputs else "queries"  # a policy gradient may sample for itself
    base = base_name(store, inputs[model]) if model in inputs else None
    head = {
        **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bolt", "long-chain-of-thought", kind, "trl"],
    }
    sections = {
        "Trained on": markdown_table(trained_on(inputs, data)),
        "Figures": markdown_table(figures(report)),
        "Format": FORMAT.format(
            format=answer["format"] or "not recognised",
            verdict=verdict(answer, recipe.get("sample_tokens", 0)),
            prompt=fenced(answer["prompt"]),
            answer=fenced(answer["text"]),
        ),
        "Use": USE,
        "Recipe": "```json\n" + json.dumps(recipe, indent=1).replace("`", "\\u0060") + "\n```",
        "Provenance": markdown_table(provenance(inputs)),
        "Licence": "That of the base model, and the licences of the data's sources.",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    named = as_text(base) if base else "A model"
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {named}, trained by {method}\n\nMade by BOLT (arXiv "
        f"2502.03860): a model learns to think at length before it answers. Artifact `{plan.step}/{plan.key}`.\n\n"
        f"{body}\n"
    )


def base_name(store: Store, model: Ref) -> str | None:
    """The name of the model that all training began with, as it was imported; None if its manifest is gone."""
    try:
        made = expect(store, model)
    except BadArtifact:
        return None
    for name in ("model", "policy"):
        if name in made.inputs:
            return base_name(store, made.inputs[name])
    named = made.config.get("name")
    return str(named) if named else None


def trained_on(inputs: Mapping[str, Ref], data: str) -> list[dict[str, str]]:
    """The table of training data."""
    if data not in inputs:
        return []
    ref = inputs[data]
    return [{"data": f"`{ref.step}/{ref.key}`", "rows": f"{ref.rows:,}", "sha256": f"`{ref.digest[:16]}`"}]


def figures(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures of the training that depend on no clock and no machine."""
    rows = []
    for name in FIGURES:
        value = report.get(name)
        for what, count in value.items() if isinstance(value, Mapping) else [("", value)]:
            if count is not None:
                shown = f"{count:,.4g}" if isinstance(count, float) else f"{count:,}"
                rows.append({"figure": as_text(f"{name.replace('_', ' ')} {what}".strip()), "value": shown})
    return rows


def provenance(inputs: Mapping[str, Ref]) -> list[dict[str, str]]:
    """What the model was made from."""
    return [
        {"input": as_text(name), "artifact": f"`{ref.step}/{ref.key}`", "sha256": f"`{ref.digest[:16]}`"}
        for name, ref in sorted(inputs.items())
    ]
