from __future__ import annotations

from itertools import islice

import pytest

from cot_formats import bolt
from infra.text.chat import load_tokenizer, prompt_text, special_strings
from nano.corpus import chat, documents
from nano.vocabulary import (
    ASSISTANT,
    CONTEXT,
    DELIMITERS,
    END,
    SPECIAL,
    USER,
    encoder,
    save_tokenizer,
    tokenizer,
    words,
)

GOLDEN = "<|user|> which day is it ? <|end|><|assistant|> answer : mon . <|end|><|user|> sure ? <|end|>"
TURNS = [
    {"role": "user", "content": "which day is it ?"},
    {"role": "assistant", "content": "answer : mon ."},
    {"role": "user", "content": "sure ?"},
]


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """The tokenizer as it is after saving and loading."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


def test_ids_are_places_in_the_list_and_words_are_unique(reading):
    assert len(words()) == len(set(words())) == len(reading)
    assert reading.convert_ids_to_tokens(range(len(words()))) == words()
    assert encoder()["<|pad|>"] == reading.pad_token_id == 0
    assert (reading.eos_token, reading.unk_token, reading.model_max_length) == (END, "<|unk|>", CONTEXT)
    assert len(words()) == 166
    assert set(bolt.FORMAT.tags) == set(DELIMITERS) <= set(words())


def test_every_word_and_every_document_survives_the_round_trip(reading):
    for text in [*words(), *(" ".join(document.split()) for document in islice(documents(9), 200))]:
        ids = reading.encode(text, add_special_tokens=False)
        assert ids == [encoder()[word] for word in text.split()]
        assert reading.decode(ids) == text


def test_a_response_survives_decoding(reading):
    """vLLM returns decoded text, in which line breaks are spaces; the format accepts both."""
    response = bolt.render("goal : find the day .", "answer : mon .")
    decoded = reading.decode(reading.encode(response, add_special_tokens=False))
    assert (bolt.parse(decoded).thoughts, bolt.parse(decoded).solution) == ("goal : find the day .", "answer : mon .")
    assert bolt.parse(decoded).ok


def test_chat_template_golden_text(reading):
    assert reading.apply_chat_template(TURNS, tokenize=False) == GOLDEN
    assert prompt_text(reading, TURNS) == GOLDEN + "<|assistant|>"


def test_the_template_gives_the_ids_that_the_models_were_trained_on(reading):
    text = reading.apply_chat_template(TURNS[:2], tokenize=False)
    trained = [encoder()[word] for word in chat(TURNS[0]["content"], TURNS[1]["content"]).split()]
    assert reading.encode(text, add_special_tokens=False) == trained


def test_control_tokens_are_the_special_ones_alone(reading):
    """The delimiters are ordinary words, so that those which a user types are harmless text."""
    assert set(special_strings(reading)) == set(SPECIAL)
    assert {USER, ASSISTANT, END} <= set(SPECIAL)


def test_unknown_words_become_the_unknown_token(reading):
    assert reading.encode("start with elephants", add_special_tokens=False)[-1] == encoder()["<|unk|>"]


def test_the_tokenizer_needs_no_folder():
    assert tokenizer().get_vocab() == encoder()
