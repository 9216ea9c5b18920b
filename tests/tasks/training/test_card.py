"""The card of a trained model: what the Hub reads, and that no text of a model or a user becomes markup."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cot_formats import bolt, r1
from infra.errors import BadInput
from infra.steps.step import Plan
from infra.store.manifest import Provenance, Ref
from infra.store.schemas import LONGCOT, PAIRS
from infra.text.markdown import fenced
from tasks.training.card import check_format, judged, model_card

GOOD = bolt.render("plan : 1 .", "answer : 1 .")


def answer(text: str, *, ended: bool = True, prompt: str = "who ? ") -> dict[str, Any]:
    return {"prompt": prompt, "text": text, "ended": ended}


@pytest.mark.parametrize(
    ("text", "ended", "in_format"),
    [
        (GOOD, True, True),
        (GOOD.partition("</internal")[0], False, True),  # cut, and so far in the format
        (GOOD.partition("</internal")[0], True, False),
        (GOOD[:-5], False, True),
        ("answer : 1 .", True, False),
        ("answer : 1 .", False, False),  # cut, but it did not begin with thoughts
        ("", True, False),
    ],
)
def test_an_answer_is_judged_as_far_as_it_goes(text: str, ended: bool, in_format: bool) -> None:
    assert judged(answer(text, ended=ended), "bolt")["in_format"] is in_format


def test_thoughts_that_the_prompt_opens_are_not_missing() -> None:
    text = r1.render("plan : 1 .", "It is 1.").removeprefix("<think>\n")
    assert judged(answer(text, prompt="who ? <think>\n"), "r1")["in_format"]
    assert not judged(answer(text), "r1")["in_format"]


def test_without_a_known_format_only_an_empty_answer_is_off() -> None:
    assert judged(answer("anything"), None)["in_format"]
    assert not judged(answer(" "), None)["in_format"]


def test_a_format_that_is_required_is_named_with_what_the_model_said() -> None:
    check_format(judged(answer(GOOD), "bolt"), "sft", 512)
    with pytest.raises(
        BadInput, match=r"(?s)sft: .*off the format: missing_thoughts.*said 'no'.*require_format to false"
    ):
        check_format(judged(answer("no"), "bolt"), "sft", 512)


@pytest.fixture
def card(world, model):
    """The card of an SFT model, or of a DPO model that was trained from it."""

    def make(said: dict[str, Any], kind: str = "sft", **report: Any) -> str:
        inputs = {"longcot": world.table(LONGCOT, [], "longcot"), "model": model}
        config = {"config": {"batch": 128, "sample_tokens": 512}}
        if kind == "dpo":
            sft = Ref(kind="model", step="sft", key="k", uri="", digest="0", rows=1)
            inputs = {"pairs": world.table(PAIRS, [], "pairs-1"), "policy": model, "reference": sft}
        plan = Plan(
            step=f"{kind}-1" if kind == "dpo" else kind, key="k", provenance=Provenance(inputs=inputs, config=config)
        )
        figures = {"samples": 8, "dropped": 1, "skipped": {"completion is empty": 2}, "steps": 3, "final_loss": 0.51234}
        figures |= {"seconds": 12.5, "resumed_at": 2, "curve": [], **report}
        return model_card(world.store, plan, {**figures, "answer": judged(said, "bolt")})

    return make


def front(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_hub_reads_the_front_matter(card, kind: str) -> None:
    head = front(card(answer(GOOD), kind))
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    assert kind in head["tags"]
    assert head["base_model"]


def test_the_card_tells_data_figures_format_and_use(card) -> None:
    text = card(answer(GOOD))
    for part in (
        "`longcot/k`",
        "| samples | 8 |",
        "completion is empty",
        "| 2 |",
        "0.5123",
        "Format of the responses: `bolt`",
        "vllm serve",
        GOOD,
    ):
        assert part in text
    assert "off the format: missing_thoughts" in card(answer("no"))


def test_the_card_depends_on_no_clock_and_no_place(card, tmp_path) -> None:
    text = card(answer(GOOD), seconds=1.0, resumed_at=None)
    assert text == card(answer(GOOD), seconds=99.0, resumed_at=7)
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "hostile",
    [
        "</think>\n```\n\n# A heading\n<script>alert(1)</script>",
        "``````\n![picture](https://evil.example/x.png)\n``````",
        "---\nlicense: mit\n---",
        "~~~\r```\r# heading",
        "safe\u202etxt.exe\x1b[2J\u2028```\u2028# heading",
    ],
)
def test_no_text_becomes_markup(card, hostile: str) -> None:
    text = card(answer(hostile, prompt=hostile))
    outside, fence = [], ""
    for line in text.splitlines():
        marks = line.strip()
        if fence:
            fence = "" if set(marks) == {"`"} and len(marks) >= len(fence) else fence
        elif marks.startswith("```"):
            fence = "`" * (len(marks) - len(marks.lstrip("`")))
        else:
            outside.append(line)
    assert not fence
    assert not any(word in "\n".join(outside) for word in ("script", "evil", "# A heading", "# heading", "license"))
    assert "license" not in front(text)
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a ````` b").startswith("``````text\n")
    assert fenced("x" * 9_000).count("x") == 4_000 + 1  # and that of "text"
