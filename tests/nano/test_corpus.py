from __future__ import annotations

import random
from itertools import islice

import pytest
from reading import is_solution, last_stated, queries_in, read

from cot_formats import bolt
from evals.short_answer import extract
from nano.corpus import PROMPT_TEMPLATE, documents, garbled, similar, with_mistakes
from nano.families import FAMILIES
from nano.pretrain import architecture
from nano.problem import Problem
from nano.vocabulary import ASSISTANT, CONTEXT, END, USER, encoder


@pytest.fixture(scope="module")
def stream() -> list[str]:
    return list(islice(documents(123), 3000))


def problem(query: str) -> Problem:
    family, facts, answer = read(query)
    return Problem(family, 0, facts, query, answer)


def kind(document: str) -> str:
    if document.startswith("exercise :"):
        return "exercise"
    return "few_shot" if PROMPT_TEMPLATE.split("\n")[0] in document else "short"


def worked(document: str) -> list[tuple[str, str]]:
    """(query, solution) of every worked problem of a document, in order."""
    if kind(document) == "exercise":
        (query,) = queries_in(document)
        end = document.removesuffix(f" {END}")
        return [(query, end)]
    solutions = [piece.split("</external_solution>")[0].strip() for piece in document.split("<external_solution>")[1:]]
    return list(zip(queries_in(document), solutions, strict=True))


def test_every_word_is_known(stream):
    ids = encoder()
    assert {word for document in stream for word in document.split()} <= set(ids)


def test_documents_fit_the_context(stream):
    assert max(len(document.split()) for document in stream) <= CONTEXT


def test_only_pretrain_problems_are_read(stream):
    found = [problem(query) for document in stream for query in queries_in(document)]
    assert {each.split for each in found} == {"pretrain"}
    assert {each.family for each in found} == set(FAMILIES)
    assert len(found) > 5000


def test_document_kinds_have_the_planned_shares(stream):
    shares = {name: sum(kind(d) == name for d in stream) / len(stream) for name in ("short", "exercise", "few_shot")}
    assert shares == pytest.approx({"short": 0.22, "exercise": 0.13, "few_shot": 0.65}, abs=0.03)
    for document in stream:
        count = len(list(queries_in(document)))
        assert count == 1 if kind(document) != "few_shot" else 2 <= count <= 4


def test_short_chats_state_the_true_answer(stream):
    for document in stream:
        if kind(document) == "short":
            (query,) = queries_in(document)
            assert document == f"{USER} {query} {END} {ASSISTANT} answer : {problem(query).answer} . {END}"


def test_worked_answers_come_from_the_derivation_and_not_from_the_gold_answer(stream):
    right = wrong = 0
    for document in stream:
        if kind(document) == "short":
            continue
        for query, solution in worked(document):
            stated = extract(solution)
            assert stated is not None
            if kind(document) == "few_shot":
                assert stated == last_stated(query, solution)
            right += stated == problem(query).answer
            wrong += stated != problem(query).answer
    assert right > wrong > 0.15 * right  # slips stay: a gold answer after wrong steps would teach rationalising


def test_few_shot_responses_are_well_formed(stream):
    for document in stream:
        if kind(document) == "few_shot":
            response = document.rsplit(ASSISTANT, 1)[1].removesuffix(END).strip()
            assert bolt.parse(response).ok


def test_the_stream_is_seeded(stream):
    assert list(islice(documents(123), 50)) == stream[:50]
    assert list(islice(documents(124), 50)) != stream[:50]


def test_labelled_solutions_are_of_reward_problems_and_the_first_is_right():
    rng = random.Random(5)
    ids = set(encoder())
    right, families = 0, set()
    for _ in range(400):
        given, solutions = with_mistakes(rng)
        assert problem(given.query).split == given.split == "reward"
        assert extract(solutions[0]) == problem(given.query).answer
        assert is_solution(given.query, solutions[0])
        assert {word for solution in solutions for word in solution.split()} <= ids
        right += sum(extract(solution) == given.answer for solution in solutions[1:])
        families.add(given.family)
    assert families == set(FAMILIES)
    assert 0.05 < right / 1200 < 0.6  # most of the others are wrong; a garbled word need not change the answer


def test_a_garbled_solution_differs():
    """Unless the word was 0 and a lower number was drawn: then nothing changes, and it still counts as right."""
    rng = random.Random(6)
    same = 0
    for _ in range(300):
        _, (right, *_) = with_mistakes(rng)
        broken = garbled(rng, right)
        assert abs(len(broken.split()) - len(right.split())) <= 1
        assert broken != right or "0" in right.split()
        same += broken == right
    assert same <= 6


def test_a_word_is_garbled_into_a_similar_one():
    rng = random.Random(7)
    kinds = ["mon tue sun", "jan may dec", "north south", "ann hal", "+ -", ". , = : >"]
    for kind in kinds:
        for word in kind.split():
            found = {similar(rng, word) for _ in range(60)}
            assert word not in found
            assert found <= set(encoder())
            assert set(kind.split()) - {word} <= found
    assert {similar(rng, "20") for _ in range(60)} == {"17", "18", "19", "21", "22", "23"}
    assert {similar(rng, "0") for _ in range(60)} == {"0", "1", "2", "3"}
    assert similar(rng, "answer") == "wait"


def test_a_base_model_reads_no_chats_and_no_short_answers():
    stream = list(islice(documents(5, chats=False), 300))
    assert not any(mark in document for document in stream for mark in (USER, ASSISTANT))
    assert all(document.endswith(f" {END}") for document in stream)
    assert all("plan :" in document for document in stream)  # worked, all of them


def test_the_shape_of_the_shipped_model_is_the_default_and_another_width_keeps_the_size_of_heads():
    for layers, width in ((4, 192), (6, 256)):
        shape = architecture(layers, width)
        assert shape.hidden_size // shape.num_attention_heads == 64
        assert (shape.num_hidden_layers, shape.hidden_size) == (layers, width)
    assert (architecture().hidden_size, architecture().intermediate_size) == (192, 512)
