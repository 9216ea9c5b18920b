"""In-context examples, and the prompt that shows them to the nano models."""

from __future__ import annotations

from infra.settings import PROJECT_ROOT
from tasks.responses.prompt import PromptConfig

NANO_PROMPT = PromptConfig(
    template=PROJECT_ROOT / "nano/prompts/in_context.md", example_template=PROJECT_ROOT / "nano/prompts/example.md"
)


def example(number: int) -> dict:
    return {
        "example_id": f"e{number}",
        "query": f"who is number {number} ?",
        "thoughts": f"goal : find number {number} .",
        "solution": f"answer : {number} .",
        "topic": "ordering",
        "actions": [],
    }
