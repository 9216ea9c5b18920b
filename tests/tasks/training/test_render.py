"""LongCoT data rendered for the model that is trained, whichever model wrote them."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import pytest

from cot_formats import bolt, r1
from infra.errors import BadInput
from infra.store.models import fetch_model
from infra.store.schemas import LONGCOT
from nano.vocabulary import ASSISTANT, END, USER
from tasks.training.render import check_prefix, render_longcot


def row(name: str = "a", format: str = "bolt", **changes: Any) -> dict[str, Any]:
    texts = {"query": f"who is {name} ?", "thoughts": "plan : 1 .", "solution": "answer : 1 ."}
    return {"query_id": name, "sample": 0, "format": format, "reward": 1.0, **texts, **changes}


@pytest.fixture
def rendered(world, tmp_path):
    """Render rows for a model, and read the file back."""

    def render(model, *rows: dict[str, Any]) -> list[dict[str, str]]:
        table, folder = world.table(LONGCOT, list(rows), "longcot"), fetch_model(world.store, model, world.work_dir)
        target = tmp_path / "work" / "rows.parquet"
        assert render_longcot(world.store, table, folder, target) == target
        return pq.read_table(target).to_pylist()

    return render


def test_prompt_and_completion_are_in_the_trained_models_template(rendered, model):
    assert rendered(model, row("a"), row("b")) == [
        {
            "query_id": name,
            "prompt": f"{USER} who is {name} ? {END}{ASSISTANT}",
            "completion": bolt.render("plan : 1 .", "answer : 1 ."),
        }
        for name in "ab"
    ]


def test_data_of_one_model_train_a_model_with_another_template(rendered, model, opening_model):
    """The same rows, once for a model like Llama and once for one like R1, whose template opens the thoughts."""
    (plain,) = rendered(model, row(format="r1"))
    (opened,) = rendered(opening_model("<think>\n"), row(format="r1"))
    assert plain["prompt"] + "<think>\n" == opened["prompt"]
    assert plain["completion"] == "<think>\n" + opened["completion"]


@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<think> \n\n"])
def test_what_the_chat_template_opens_is_not_written_twice(rendered, opening_model, opened):
    (found,) = rendered(opening_model(opened), row(format="r1"))
    assert found["prompt"].endswith(opened)
    assert "<think>" not in found["completion"]
    parsed = r1.parse(opened + found["completion"])
    assert (parsed.thoughts, parsed.solution, parsed.ok) == ("plan : 1 .", "answer : 1 .", True)


def test_a_control_token_in_a_query_is_broken(rendered, model):
    (found,) = rendered(model, row(query=f"who {END} is it ?"))
    assert found["prompt"].count(END) == 1


@pytest.mark.parametrize(
    "changes",
    [{"thoughts": ""}, {"solution": " "}, {"query": ""}, {"thoughts": "a </internal_thoughts> b"}],
)
def test_a_row_that_cannot_be_rendered_is_left_for_the_trainer_to_count(rendered, model, changes):
    good, bad = rendered(model, row("a"), row("b", **changes))
    assert good["completion"]
    assert (bad["query_id"], bad["completion"]) == ("b", None)


def test_an_unknown_format_is_named_with_its_query(rendered, model):
    with pytest.raises(BadInput, match=r"query b: unknown format 'bolt2' .* expected one of bolt, r1"):
        rendered(model, row("a"), row("b", format="bolt2"))


def test_a_template_that_closes_the_thoughts_in_the_prompt_is_refused(rendered, opening_model):
    """As Qwen3's does with thinking switched off: thoughts would follow an empty pair of delimiters."""
    with pytest.raises(BadInput, match=r"closes the thoughts at the end of every prompt .*in the format r1"):
        rendered(opening_model("<think>\n\n</think>\n\n"), row(format="r1"))
    rendered(opening_model("<think>\n\n</think>\n\n"), row())  # another format has other delimiters


@pytest.mark.parametrize("format", ["bolt", "still2", "marco", "qwq"])
def test_a_template_that_opens_the_thoughts_of_another_format_is_refused(rendered, opening_model, format):
    with pytest.raises(BadInput, match=rf"in the format {format} would never close them: set the format to r1 or rlmt"):
        rendered(opening_model(), row(format=format))
    check_prefix("<think>\n", "plain", "model m")  # which has no thoughts


def test_no_rows_give_an_empty_file(rendered, model):
    assert rendered(model) == []
