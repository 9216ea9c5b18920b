"""The token that ends an assistant's turn: found in templates of real shapes, and refused if nothing stops there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import ALPACA, CHATML, FAMILIES, make_folder, make_tokenizer

from infra.errors import BadInput
from infra.text.chat import check_end_token, end_token, load_tokenizer


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_token_is_what_the_template_puts_at_a_turns_end(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    tokenizer = make_tokenizer(family)
    text, number = end_token(tokenizer)
    assert (text, number) == (family.end, tokenizer.convert_tokens_to_ids(family.end))
    folder = make_folder(tmp_path / name, family)
    assert check_end_token(load_tokenizer(folder), folder) == number


@pytest.mark.parametrize(
    ("name", "eos", "stops", "end"),
    [
        ("qwen2.5", "<|endoftext|>", ["<|endoftext|>"], r"<\|im_end\|>"),  # a base model with the instruct template
        ("llama3", "<|end_of_text|>", ["<|end_of_text|>"], r"<\|eot_id\|>"),
        ("gemma", "<eos>", ["<eos>"], "<end_of_turn>"),
        ("phi3.5", "<|endoftext|>", ["<|endoftext|>"], r"<\|end\|>"),
        ("mistral", "<unk>", ["<unk>"], None),  # the template prints eos_token, whatever it is
    ],
)
def test_an_end_token_at_which_nothing_stops_is_refused(
    name: str, eos: str, stops: list[str], end: str | None, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / name, FAMILIES[name], eos=eos, stops=stops)
    tokenizer = load_tokenizer(folder)
    if end is None:
        assert check_end_token(tokenizer, folder) == tokenizer.eos_token_id
        return
    with pytest.raises(BadInput, match=rf"ends an assistant's turn with '{end}' \(id \d+\), but nothing stops there.*"):
        check_end_token(tokenizer, folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    number = end_token(tokenizer)[1]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [generation["eos_token_id"], number]}))
    assert check_end_token(tokenizer, folder) == number  # the fix that the message names


def test_without_a_generation_config_the_end_tokens_of_config_json_count(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["gemma"])
    (folder / "generation_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    with pytest.raises(BadInput, match=r"eos_token_id of config\.json lists none"):
        check_end_token(tokenizer, folder)
    number = end_token(tokenizer)[1]
    for told in ({"eos_token_id": [1, number]}, {"eos_token_id": number}, {"text_config": {"eos_token_id": number}}):
        (folder / "config.json").write_text(json.dumps(told))
        assert check_end_token(tokenizer, folder) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object in UTF-8"),
        ("", "expected a JSON object in UTF-8"),
        ("\ufeff{}", "expected a JSON object in UTF-8 .*BOM"),  # transformers does not read it either
        ("[]", r"expected a JSON object, found \[\]"),
        ('{"eos_token_id": [[2]]}', r"eos_token_id is \[\[2\]\]: expected the id of a token"),
        ('{"eos_token_id": "<eos>"}', "expected the id of a token"),
        ('{"eos_token_id": [null]}', "expected the id of a token"),
        ('{"eos_token_id": [-1, 99999999]}', "but nothing stops there.* lists -1, 99999999"),
    ],
)
def test_end_tokens_that_cannot_be_read_are_refused_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["gemma"])
    tokenizer = load_tokenizer(folder)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=message) as caught:
        check_end_token(tokenizer, folder)
    assert "generation_config.json" in str(caught.value)


def test_an_end_token_with_the_id_0_counts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["gemma"])
    tokenizer = load_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    with pytest.raises(BadInput, match=r"eos_token_id of generation_config\.json lists !"):
        check_end_token(tokenizer, folder)


def test_a_turn_that_ends_with_a_mark_that_is_no_token_is_refused() -> None:
    for template in (CHATML, ALPACA.replace("\n\n", "</s>\n")):
        chatml_on_llama = make_tokenizer(FAMILIES["llama3"], template=template)
        with pytest.raises(BadInput, match=r"with '(<\|im_end\|>|</s>)', which is no token of the tokenizer"):
            end_token(chatml_on_llama)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "cannot render a conversation of user, assistant .*: no"),
        ("{% for m in messages %}{{ m.text.upper() }}{% endfor %}", "cannot render .*'text'"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves out the question or the answer"),
        ("{{ messages[0]['content'] }}", "leaves out the question or the answer"),
        ("{% if %}", "cannot render"),
        ("{{ '%(x)s' % messages[0] }}", "cannot render .*KeyError"),
        ("{{ 1 // 0 }}", "cannot render .*ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot render .*RecursionError"),
        ("", "no chat template"),
    ],
)
def test_a_template_that_cannot_show_a_conversation_is_refused(template: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        end_token(make_tokenizer(FAMILIES["llama3"], template=template))


def test_without_any_end_token_completions_cannot_end() -> None:
    tokenizer = make_tokenizer(FAMILIES["alpaca"])
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match="the tokenizer has no end token"):
        end_token(tokenizer)
