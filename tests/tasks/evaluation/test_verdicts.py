"""How a judge's verdicts are requested, kept, read and counted."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from fakes import TinyServers, chats

from infra.errors import BadInput
from infra.serving.ledger import LedgerError
from infra.serving.vllm_server import ServerError
from infra.steps.step import step
from infra.store.models import import_model
from tasks.evaluation.verdicts import ONCE_MORE, Judge, JudgeRequest, ask_judge
from tasks.queries.ask import JudgeError

KEY = "sk-planted-51c0ffee"
NUMBERS = {str(number): float(number) for number in range(10)}


@step
def asking(plan: Any, store: Any, **more: Any) -> Any:
    return ask_judge(plan, store, **more)


def read(text: str) -> Any:
    return NUMBERS.get(text, text if text in ("A", "B") else None)


def requests(count: int) -> list[JudgeRequest]:
    return [JudgeRequest(f"q{n}", 0, "turn-1", [{"role": "user", "content": f"rate {n}"}], read) for n in range(count)]


def answering(texts: dict[int, list[str]], otherwise: str = "5") -> Any:
    """Answers by the number in the question, one after the other; the last one is repeated."""
    remaining = {number: list(each) for number, each in texts.items()}

    def text(question: str) -> str:
        answers = remaining.get(int(question.split()[-1]), [otherwise])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    return chats(text)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("BOLT_JUDGE_API_KEY", raising=False)


@pytest.fixture
def elsewhere(world, serve):
    """Use a judge behind a URL; no server is started for it."""

    def ask(server: Any, questions: list[JudgeRequest], **settings: Any) -> Any:
        judge = Judge(url=server.url, name="judge-2026", **{"in_flight": 1, "max_unread_share": 1, **settings})
        servers = TinyServers(world.work_dir)
        return world.do(asking, judge=judge, judge_model=None, servers=servers, requests=questions)

    return ask


def ledgers(world: Any) -> list[Any]:
    return sorted((world.work_dir / "ledgers").iterdir())


# ---- what is sent, what is kept


def test_a_row_holds_the_whole_verdict(world, elsewhere, serve, bars):
    server = serve(completions=answering({0: ["7"], 1: ["A"]}))
    made = elsewhere(server, requests(2), temperature=0.25, max_tokens=77, verdict_regex="[0-9AB]")
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-2026", 0.25, 77)
    assert body["messages"] == [{"role": "user", "content": "rate 0"}]
    assert body["structured_outputs"] == {"regex": "[0-9AB]"}
    plain = {"sample": 0, "part": "turn-1", "asks": 1, "prompt_tokens": 6, "completion_tokens": 1, "refusal": None}
    assert world.rows(made) == [
        {"query_id": "q0", "answer": "7", "label": None, "score": 7.0, **plain},
        {"query_id": "q1", "answer": "A", "label": "A", "score": None, **plain},
    ]
    assert ledgers(world) == []
    assert bars == {"made": 1.0}


def test_rows_come_in_the_order_of_the_questions(world, elsewhere, serve):
    made = elsewhere(serve(completions=answering({})), requests(40)[::-1], in_flight=16)
    assert [row["query_id"] for row in world.rows(made)] == [f"q{n}" for n in range(40)][::-1]


def test_each_verdict_is_on_disk_before_the_next_request(world, elsewhere, serve):
    held = []

    def text(question: str) -> str:
        held.append([json.loads(line) for line in ledgers(world)[0].read_text().splitlines()[1:]])
        return "3"

    elsewhere(serve(completions=chats(text)), requests(4))
    assert [len(each) for each in held] == [0, 1, 2, 3]
    record = {"text": "3", "finish_reason": "stop", "prompt_tokens": 6, "completion_tokens": 1}
    assert held[1] == [{"id": "q0 0 turn-1", "record": {**record, "refusal": None, "changes": []}}]


def test_without_requests_the_table_is_empty_and_nothing_is_sent(world, elsewhere, serve):
    server = serve(completions=answering({}))
    made = elsewhere(server, [], max_unread_share=0)
    assert (world.rows(made), server.asked) == ([], [])
    assert world.counts(made)["asked"] == 0


# ---- what cannot be read


def test_an_unreadable_verdict_is_requested_exactly_once_more_and_never_guessed(world, elsewhere, serve):
    server = serve(completions=answering({2: ["it is a 7", "4"], 4: ["I can't", "10", "9"], 6: [""]}))
    made = elsewhere(server, requests(8), prompt_price=1_000, completion_price=1_000_000)
    found = {r["query_id"]: (r["answer"], r["label"], r["score"], r["asks"]) for r in world.rows(made)}
    assert found["q2"] == ("4", None, 4.0, 2)
    assert found["q4"] == ("10", None, None, 2)  # outside the scale, and no third request
    assert found["q6"] == ("", None, None, 2)
    assert found["q0"] == ("5", None, 5.0, 1)
    assert len(server.asked) == 11
    shown = [message["content"] for body in server.asked for message in body["messages"]]
    prompt, completion = len("".join(shown)), 5 + 9 + 1 + 7 + 2 + 0 + 0
    counts = {"asked": 8, "asked again": 3, "unread": 2, "refused": 0, "prompt tokens": prompt, "changes": ""}
    dollars = round(prompt / 1_000 + completion, 4)
    assert world.counts(made) == {**counts, "completion tokens": completion, "dollars": dollars}


def test_the_second_request_repeats_what_the_judge_said(elsewhere, serve):
    server = serve(completions=answering({0: ["it is <|im_end|> a 7"], 1: [" "]}))
    elsewhere(server, requests(2))
    first, empty, second, again = (body["messages"] for body in server.asked)
    answer = {"role": "assistant", "content": "it is < |im_end|> a 7"}  # it may repeat the answer that it judges
    assert second == [*first, answer, {"role": "user", "content": ONCE_MORE}]
    assert again == empty  # there is nothing to repeat, and some APIs refuse an empty turn


def test_too_many_unreadable_verdicts_fail_the_step_and_a_rerun_costs_nothing(world, elsewhere, serve):
    server = serve(completions=answering({}, otherwise="As an AI model, I rate nothing."))
    with pytest.raises(JudgeError) as error:
        elsewhere(server, requests(10), max_unread_share=0.99)
    for part in (
        "made: 10 of 10",
        "second request",
        "limit 99.0%",
        "'q0 0 turn-1'",
        "As an AI model",
        "max_unread_share",
    ):
        assert part in str(error.value)
    assert not world.store.exists("made/k/manifest.json")
    assert len(server.asked) == 20
    made = elsewhere(server, requests(10), max_unread_share=1)
    assert len(server.asked) == 20
    assert world.counts(made)["unread"] == 10
    assert {(row["label"], row["score"]) for row in world.rows(made)} == {(None, None)}


@pytest.mark.parametrize(("limit", "fails"), [(0.19, True), (0.2, False)])
def test_the_share_of_unreadable_verdicts_may_reach_its_limit(world, elsewhere, serve, limit, fails):
    server = serve(completions=answering({1: ["?"], 3: ["?"]}))
    if fails:
        with pytest.raises(JudgeError, match="2 of 10"):
            elsewhere(server, requests(10), max_unread_share=limit)
    else:
        assert world.counts(elsewhere(server, requests(10), max_unread_share=limit))["unread"] == 2


def test_duplicate_requests_are_refused_before_anything_is_sent(elsewhere, serve):
    server = serve(completions=answering({}))
    with pytest.raises(ValueError, match=r"made: 3 judgements have only 2 ids: a problem's id is duplicated"):
        elsewhere(server, [*requests(2), *requests(1)])
    assert server.asked == []


# ---- kills


@pytest.mark.parametrize("deaths", [0, 4, 9, 10, 11])  # 10: between the verdicts and the second requests
def test_a_second_run_sends_only_the_requests_that_are_owed(make_world, tokenizer_folder, serve, deaths):
    texts = {2: ["maybe"], 6: ["perhaps", "3"]}

    def run(world, server):
        judge_model = import_model(world.store, tokenizer_folder, "nano")
        servers = TinyServers(world.work_dir, server)
        judge = Judge(model="nano", in_flight=1, max_unread_share=1)
        return world.do(asking, judge=judge, judge_model=judge_model, servers=servers, requests=requests(10))

    undisturbed = run(make_world("a"), serve(completions=answering(texts)))
    world, dying = make_world("b"), serve(completions=answering(texts))
    dying.dies_after = deaths
    with pytest.raises(ServerError, match="the server died"):
        run(world, dying)
    assert len(dying.asked) == deaths
    second = serve(completions=answering({2: ["maybe"], 6: ["3"] if deaths > 6 else texts[6]}))
    resumed = run(world, second)
    assert len(second.asked) == 12 - deaths
    assert resumed.digest == undisturbed.digest
    assert world.counts(resumed) == {**world.counts(resumed), "asked": 10, "asked again": 2, "unread": 1}
    assert ledgers(world) == []


def test_a_torn_last_line_is_owed_again(world, elsewhere, serve):
    server = serve(completions=answering({}, otherwise="?"))
    with pytest.raises(JudgeError):
        elsewhere(server, requests(3), max_unread_share=0)
    (path,) = ledgers(world)
    path.write_bytes(path.read_bytes()[:-9])
    second = serve(completions=answering({}))
    made = elsewhere(second, requests(3))
    assert [row["score"] for row in world.rows(made)] == [None, None, 5.0]
    assert len(second.asked) == 1


def test_the_ledger_of_another_key_is_refused(world, elsewhere, serve):
    path = world.work_dir / "ledgers" / "made-k.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"ledger":1,"key":"other"}\n')
    with pytest.raises(LedgerError, match="belongs to shard 'other'"):
        elsewhere(serve(completions=answering({})), requests(1))


# ---- the key


@pytest.fixture
def _key(monkeypatch):
    monkeypatch.setenv("BOLT_JUDGE_API_KEY", KEY)


def everything_in(world: Any) -> bytes:
    return b"".join(path.read_bytes() for path in world.work_dir.parent.rglob("*") if path.is_file())


@pytest.mark.usefixtures("_key")
def test_the_key_is_sent_but_stored_and_logged_nowhere(world, elsewhere, serve, caplog):
    server = serve(completions=answering({1: ["?"]}))
    with caplog.at_level(logging.DEBUG), pytest.raises(JudgeError) as error:
        elsewhere(server, requests(3), max_unread_share=0)
    assert b"turn-1" in everything_in(world)  # the ledger
    assert KEY.encode() not in everything_in(world)
    elsewhere(server, requests(3))
    assert server.keys == [f"Bearer {KEY}"] * 4
    assert b"judgements" not in everything_in(world)
    assert KEY.encode() not in everything_in(world)
    assert KEY not in f"{error.getrepr()} {caplog.text}"


def test_without_a_key_no_header_is_sent(elsewhere, serve):
    server = serve(completions=answering({}))
    elsewhere(server, requests(1))
    assert server.keys == [None]


@pytest.mark.usefixtures("_key")
def test_a_judge_served_here_is_not_sent_the_key(world, model, serve):
    server = serve(completions=answering({}))
    servers = TinyServers(world.work_dir, server)
    world.do(asking, judge=Judge(model="nano"), judge_model=model, servers=servers, requests=requests(2))
    assert server.keys == [None, None]
    assert server.asked[0]["model"] == "fake"


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize("status", [401, 402])
def test_a_judge_that_refuses_everything_is_the_users_to_correct(world, elsewhere, serve, caplog, status):
    """The verdicts so far are kept, and the key is shown nowhere."""
    answered = answering({})

    def refusing(body: dict[str, Any]) -> dict[str, Any]:
        refused = {"status": status, "error": {"message": f"incorrect key {KEY}"}}
        return refused if body["messages"][0]["content"] == "rate 2" else answered(body)

    server = serve(completions=refusing)
    with caplog.at_level(logging.DEBUG), pytest.raises(BadInput) as error:
        elsewhere(server, requests(4))
    assert str(error.value).startswith(
        f"made: chat q2 0 turn-1: the server answered {status}: incorrect key (the key). "
    )
    assert f"was asked at {server.url}/v1/chat/completions: check judge.url" in str(error.value)
    assert "BOLT_JUDGE_API_KEY" in str(error.value)
    assert KEY not in f"{error.getrepr()} {caplog.text}"
    assert KEY.encode() not in everything_in(world)
    second = serve(completions=answered)
    elsewhere(second, requests(4))
    assert [body["messages"][0]["content"] for body in second.asked] == ["rate 2", "rate 3"]


# ---- refusals

FILTER = {"status": 400, "error": {"code": "content_filter", "message": "the prompt was filtered, KEY"}}


def refusing(answers: dict[int, Any], otherwise: str = "5") -> Any:
    """A judge that answers the questions of these numbers so: with a whole answer, or with a message."""
    plain = answering({}, otherwise)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        found = answers.get(int(body["messages"][0]["content"].split()[-1]))
        if found is None or "status" in found:
            return found or plain(body)
        choice = {"message": {"content": None, **found}, "finish_reason": found.get("finish_reason", "stop")}
        return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    return answer


REFUSALS = {
    1: FILTER,
    3: {"refusal": "I can't rate this."},
    4: {"content": "Rating: [[", "finish_reason": "content_filter"},
    7: {"status": 413, "error": {"message": "too long"}},
}
REASONS = {
    "q1": "400: the prompt was filtered, KEY",
    "q3": "I can't rate this.",
    "q4": "finish_reason content_filter",
    "q7": "413: too long",
}


@pytest.mark.parametrize("in_flight", [1, 8])
def test_a_refusal_or_a_content_filter_is_the_verdicts_fault_and_its_reason_is_kept(world, elsewhere, serve, in_flight):
    server = serve(completions=refusing(REFUSALS))
    made = elsewhere(server, requests(10), max_unread_share=0.4, in_flight=in_flight)
    found = {row["query_id"]: row for row in world.rows(made)}
    assert {name: row["refusal"] for name, row in found.items() if row["refusal"]} == REASONS
    for name, row in found.items():
        assert (row["label"], row["score"]) == (None, None if name in REASONS else 5.0)
    assert len(server.asked) == 10  # none is asked for again
    counts = world.counts(made)
    assert (counts["asked"], counts["asked again"], counts["unread"], counts["refused"]) == (10, 0, 4, 4)
    assert counts["completion tokens"] == 6 + 2 * 2  # what was refused with a message is paid
    assert ledgers(world) == []


def test_too_many_refusals_fail_the_step_as_soon_as_it_is_certain(elsewhere, serve):
    server = serve(completions=refusing(dict.fromkeys(range(2, 100), FILTER)))
    with pytest.raises(JudgeError) as error:
        elsewhere(server, requests(100), max_unread_share=0.05)
    for part in ("made: ", "refuses 6 of 100 verdicts", "limit 5.0%", "'q2 0 turn-1'", "the prompt was filtered"):
        assert part in str(error.value)
    assert len(server.asked) == 2 + 6


def test_a_second_request_may_be_refused(world, elsewhere, serve):
    """The first answer made the conversation too long."""
    plain = answering({2: ["well"]})

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"status": 400, "error": {"message": "too long"}} if len(body["messages"]) > 1 else plain(body)

    made = elsewhere(serve(completions=answer), requests(3))
    row = world.rows(made)[2]
    assert (row["answer"], row["score"], row["asks"], row["refusal"]) == ("well", None, 2, "400: too long")
    assert world.counts(made)["refused"] == 1


def test_a_rerun_sends_what_was_refused_again_and_nothing_else(world, elsewhere, serve):
    """A refusal may be put right: with another address, a larger limit of the server, a paid account."""
    with pytest.raises(JudgeError, match=r"limit 0\.0%"):
        elsewhere(serve(completions=refusing({2: FILTER})), requests(4), max_unread_share=0)
    second = serve(completions=answering({}))
    made = elsewhere(second, requests(4), max_unread_share=0)
    assert [body["messages"][0]["content"] for body in second.asked] == ["rate 2", "rate 3"]
    assert world.counts(made)["refused"] == 0


def test_how_requests_were_changed_for_an_endpoint_is_recorded(world, elsewhere, serve):
    plain = answering({})

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"status": 400, "error": {"param": "temperature"}} if "temperature" in body else plain(body)

    made = elsewhere(serve(completions=answer), requests(3))
    assert world.counts(made)["changes"] == "no temperature (its own default)"
