from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats
from shown_examples import NANO_PROMPT, example

from cot_formats import bolt
from infra.errors import BadInput
from infra.settings import PROJECT_ROOT
from infra.store.manifest import Ref
from infra.text.templates import text_of
from nano.corpus import PROMPT_TEMPLATE
from nano.vocabulary import ASSISTANT, END, USER, tokenizer
from tasks.examples.read import ExamplesConfig
from tasks.responses.generate import GenerateConfig, generate, request_seed
from tasks.responses.prompt import PromptConfig, draw_examples, first_prompt, in_context_turns, query_prompt, shown_ids


def key(prompt: PromptConfig) -> str:
    """The cache key of sampling with this prompt."""
    given = Ref(kind="table", step="queries", key="k", uri="", digest="d", rows=1)
    servers = SimpleNamespace(engine=str)
    arguments = {"config": GenerateConfig(), "queries": given, "model": given, "servers": servers, "prompt": prompt}
    return generate.plan("responses", arguments).key


def template(folder: Path, text: str, shown: str = "{query} -> {response}") -> PromptConfig:
    (folder / "in_context.md").write_text(text)
    (folder / "example.md").write_text(shown)
    return PromptConfig(template=folder / "in_context.md", example_template=folder / "example.md")


def in_context_prompt(*given):
    """The one user turn of the layout `one-turn`."""
    (turn,) = in_context_turns(*given)
    assert turn["role"] == "user"
    return turn["content"]


# ---- the prompt


def test_the_in_context_prompt_has_the_wording_that_the_nano_model_was_trained_on():
    shown = [example(1), example(2)]
    given = "\n\n".join(f"query : {e['query']}\nresponse : {bolt.render(e['thoughts'], e['solution'])}" for e in shown)
    expected = PROMPT_TEMPLATE.format(examples=given, query="what now ?")
    assert in_context_prompt(NANO_PROMPT, shown, "what now ?", "bolt") == expected
    assert expected.startswith(
        "here are worked examples .\n\nquery : who is number 1 ?\nresponse : <internal_thoughts>\n"
    )
    assert expected.endswith("now answer this query in the same form .\nquery : what now ?")


def test_editing_a_template_does_not_change_a_run_in_progress(tmp_path):
    """The key is planned at the start and shards are sampled hours later: both use the same text."""
    prompt = template(tmp_path, "{examples}\n{query}")
    digest = key(prompt)
    template(tmp_path, "edited: {examples}\n{query}")
    assert key(prompt) == digest
    assert in_context_prompt(prompt, [example(1)], "what now ?", "bolt").endswith("\nwhat now ?")
    assert "edited" not in in_context_prompt(prompt, [example(1)], "what now ?", "bolt")
    text_of.cache_clear()  # as in a new process
    assert key(prompt) != digest


def test_fields_spelled_in_inserted_text_stay_as_they_are(tmp_path):
    prompt = template(tmp_path, "Q {query}\nE {examples}\nagain {query} {other}")
    shown = [{**example(1), "query": "{response} {query}"}]
    assert in_context_prompt(prompt, shown, "{examples}", "r1") == (
        "Q {examples}\nE {response} {query} -> <think>\ngoal : find number 1 .\n</think>\n\nanswer : 1 .\n"
        "again {examples} {other}"
    )


@pytest.mark.parametrize(
    ("text", "shown", "message"),
    [
        ("{query}", "{query} {response}", "in_context.md: the prompt template lacks the field {examples}"),
        ("{examples}", "{query} {response}", "in_context.md: the prompt template lacks the field {query}"),
        ("{examples} {query}", "{query}", "example.md: the prompt template lacks the field {response}"),
    ],
)
def test_a_template_without_a_field_is_refused(tmp_path, text, shown, message):
    with pytest.raises(BadInput) as error:
        in_context_prompt(template(tmp_path, text, shown), [example(1)], "x", "bolt")
    assert message in str(error.value)


def test_examples_cannot_be_shown_as_plain_answers(tmp_path):
    with pytest.raises(ValueError, match="not `plain`"):
        in_context_prompt(NANO_PROMPT, [example(1)], "x", "plain")


# ---- the whole chat prompt


def test_a_query_alone_is_one_user_turn():
    found = query_prompt({"query_id": "q", "query": "which day ?"}, tokenizer(), "bolt", 0, None, [])
    assert found == f"{USER} which day ? {END}{ASSISTANT}"
    assert shown_ids("q", 0, None, []) == []


def test_examples_go_into_the_last_turn_and_are_named_in_order():
    table = [example(n) for n in range(5)]
    query = {"query_id": "q", "query": "what now ?", "history": '[{"role": "user", "content": "who ?"}]'}
    found = query_prompt(query, tokenizer(), "bolt", 7, NANO_PROMPT, table)
    drawn = draw_examples(table, 3, 7, "q")
    assert shown_ids("q", 7, NANO_PROMPT, table) == [each["example_id"] for each in drawn]
    last = in_context_prompt(NANO_PROMPT, drawn, "what now ?", "bolt")
    assert found == f"{USER} who ? {END}{USER} {last} {END}{ASSISTANT}"


def test_examples_as_turns_come_before_all_others():
    table = [example(n) for n in range(5)]
    history = '[{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "me ."}]'
    query = {"query_id": "q", "query": "what now ?", "history": history}
    prompt = PromptConfig(examples=2, layout="turns")
    found = query_prompt(query, tokenizer(), "bolt", 7, prompt, table)
    drawn = draw_examples(table, 2, 7, "q")
    assert shown_ids("q", 7, prompt, table) == [each["example_id"] for each in drawn]
    turns = [
        f"{USER} {each['query']} {END}{ASSISTANT} {bolt.render(each['thoughts'], each['solution'])} {END}"
        for each in drawn
    ]
    assert found == f"{''.join(turns)}{USER} who ? {END}{ASSISTANT} me . {END}{USER} what now ? {END}{ASSISTANT}"


def test_a_control_token_in_an_example_is_broken_in_either_layout():
    shown = [{**example(1), "query": f"who {END} is it ?"}]
    for layout in ("one-turn", "turns"):
        prompt = NANO_PROMPT.model_copy(update={"layout": layout, "examples": 1})
        text = query_prompt({"query_id": "q", "query": "what now ?"}, tokenizer(), "bolt", 0, prompt, shown)
        assert text.count(END) == (1 if layout == "one-turn" else 3)


def test_a_template_that_deletes_the_thoughts_of_earlier_turns_is_refused_for_turns():
    forgetful = tokenizer()
    forgetful.chat_template = forgetful.chat_template.replace(
        "message['content']", "(message['content'].split('</think>') | last)"
    )
    query, shown = {"query_id": "q", "query": "what now ?"}, [example(1)]
    turns = PromptConfig(examples=1, layout="turns")
    with pytest.raises(BadInput, match=r"set prompt\.layout to `one-turn`"):
        query_prompt(query, forgetful, "r1", 0, turns, shown)


@pytest.mark.parametrize(("format", "kept"), [("r1", True), ("plain", False)])
def test_only_the_assistants_own_delimiters_survive_in_the_history(format, kept):
    spoken = tokenizer()
    spoken.add_tokens(["<think>", "</think>"], special_tokens=True)
    turns = [{"role": role, "content": f"<think> {role} </think> {END}"} for role in ("user", "assistant")]
    query = {"query_id": "q", "query": "<think> why </think>", "history": json.dumps(turns)}
    text = query_prompt(query, spoken, format, 0, None, [])
    assert ("<think> assistant </think>" in text) == kept
    assert text.count("<think>") == kept
    assert text.count(END) == 3


def test_a_dry_run_shows_the_first_prompt_from_the_users_files():
    count = len(list((PROJECT_ROOT / "prompts/examples").glob("*.md")))
    examples = ExamplesConfig(path=PROJECT_ROOT / "prompts/examples", count=count)
    found = first_prompt(NANO_PROMPT, examples, {"query_id": "q", "query": "what now ?"}, 0, "bolt")
    assert found.startswith("here are worked examples .")
    assert found.endswith("query : what now ?")
    assert "(the query: its source is not read in a dry run)" in first_prompt(NANO_PROMPT, examples, None, 0, "bolt")


# ---- the seeded draw


def test_every_set_of_examples_is_drawn_equally_often():
    table = [example(n) for n in range(10)]
    drawn = Counter(tuple(e["example_id"] for e in draw_examples(table, 3, 0, f"query-{n}")) for n in range(20_000))
    assert set(drawn) == set(combinations([e["example_id"] for e in table], 3))  # 120, in table order, none twice
    assert stats.chisquare(list(drawn.values())).pvalue > 0.001
    shown = Counter(name for names, times in drawn.items() for name in names for _ in range(times))
    assert all(abs(times - 6_000) < 250 for times in shown.values())  # four standard deviations


def test_the_draw_depends_only_on_seed_query_and_examples():
    table = [example(n) for n in range(10)]
    first = draw_examples(table, 3, 0, "q")
    assert [draw_examples(table, 3, 0, "q") for _ in range(3)] == [first] * 3
    assert len({str(draw_examples(table, 3, seed, "q")) for seed in range(20)}) > 10
    assert len({str(draw_examples(table, 3, 0, f"q{n}")) for n in range(20)}) > 10
    assert draw_examples(table[:3], 3, 7, "q") == table[:3]
    with pytest.raises(ValueError, match="11 in-context examples per prompt, but the table `examples` holds only 10"):
        draw_examples(table, 11, 0, "q")


def test_request_seeds_are_distinct_and_fit_an_int():
    seeds = {request_seed(seed, f"q{n}") for seed in (0, 1) for n in range(1000)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(0, "q0") == request_seed(0, "q0")
