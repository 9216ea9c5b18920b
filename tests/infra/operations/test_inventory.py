from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from s3_for_tests import boto_client

from infra.operations.inventory import artifacts, needed, problems, remove, unneeded
from infra.store.claims import claimed
from infra.store.lineage import history, lineage, lineage_picture
from infra.store.manifest import begin, finish, load
from infra.store.parts import find
from infra.store.schemas import GRADES, PAIRS, QUERIES, SCORES
from infra.store.tables import Provenance, write_table

KEY = "0123456789abcdef0123"  # has the form of a cache key
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False)])


def make(store, step, inputs, key="k"):
    return write_table(store, step, key, SCHEMA, [[{"id": f"{step}-{key}"}]], Provenance(inputs=inputs))


@pytest.fixture
def made(store):
    """queries -> responses -> sft, and a second chain that shares the queries."""
    queries = make(store, "queries", {})
    responses = make(store, "responses", {"queries": queries})
    sft = make(store, "sft", {"responses": responses})
    other = make(store, "responses", {"queries": queries}, "other")
    dpo = make(store, "dpo", {"responses": other})
    return {ref.step + "/" + ref.key: ref for ref in (queries, responses, sft, other, dpo)}


def folders(found):
    return [each.folder for each in found]


def test_whole_torn_and_unfinished_artifacts_are_listed(store, made):
    store.write_bytes("runs/quick-fox/summary.json", b"{}")
    store.write_bytes(f"torn/{KEY}/manifest.json", b"{")
    store.write_bytes("app/static/manifest.json", b'{"name": "a web application in the same bucket"}')
    store.write_bytes("copies/k/manifest.json", store.read_bytes("sft/k/manifest.json"))
    store.write_bytes(f"begun/{KEY}/part-00000.parquet", b"x")
    store.write_bytes("queries-of-mine/raw/part-00000.parquet", b"the user's own, in the same bucket")
    store.write_bytes(f"huggingface/hub/{KEY}/config.json", b"{}")
    found = {each.folder: each for each in artifacts(store)}
    assert sorted(found) == sorted([*made, f"torn/{KEY}", f"begun/{KEY}"])
    assert "torn or corrupt" in found[f"torn/{KEY}"].problem
    assert "never finished" in found[f"begun/{KEY}"].problem
    assert all(found[name].manifest.digest == ref.digest for name, ref in made.items())


def test_verify_names_each_damaged_part(store, made):
    assert not [line for each in artifacts(store) for line in problems(store, each)]
    store.write_bytes("sft/k/part-00000.parquet", b"garbage")
    store.delete("dpo/k/part-00000.parquet")
    store.write_bytes("queries/k/stranger.txt", b"hello")
    wrong = {each.folder: problems(store, each) for each in artifacts(store)}
    assert {name: len(lines) for name, lines in wrong.items() if lines} == {"sft/k": 1, "dpo/k": 1, "queries/k": 1}
    assert "another size" in wrong["sft/k"][0]
    assert "missing" in wrong["dpo/k"][0]
    assert "stranger.txt is not in the manifest" in wrong["queries/k"][0]


def test_needed_reaches_back_to_the_sources(store, made):
    manifests = [load(store, ref.step, ref.key) for ref in made.values()]
    assert needed(manifests, ["sft/k"]) == {"sft/k", "responses/k", "queries/k"}


def test_prune_keeps_the_inputs_of_kept_artifacts(store, made):
    assert folders(unneeded(store, ["sft/k"])) == ["dpo/k", "responses/other"]
    assert folders(unneeded(store, ["dpo/k"])) == ["responses/k", "sft/k"]
    assert folders(unneeded(store, ["dpo/k", "sft/k"])) == []
    with pytest.raises(ValueError, match="nothing to keep at sft/gone"):
        unneeded(store, ["sft/gone"])


def test_prune_does_not_guess_the_inputs_of_a_torn_artifact(store, made):
    torn = make(store, "responses", {"queries": made["queries/k"]}, KEY)
    make(store, "sft", {"responses": torn}, "other")
    store.write_bytes(f"responses/{KEY}/manifest.json", b"{")
    with pytest.raises(ValueError, match=f"responses/{KEY}: needed by a kept artifact, but without a whole manifest"):
        unneeded(store, ["sft/other"])
    assert folders(unneeded(store, ["dpo/k", "sft/k"])) == [f"responses/{KEY}", "sft/other"]


def test_prune_includes_unfinished_artifacts_but_no_foreign_folders(store, made):
    store.write_bytes(f"begun/{KEY}/part-00000.parquet", b"x")
    store.write_bytes("work/ledgers/responses-k.jsonl", b"{}")
    store.write_bytes("mine/raw/a.parquet", b"x")
    store.write_bytes("app/static/manifest.json", b"{}")
    store.write_bytes("app/static/icon.png", b"x")
    assert folders(unneeded(store, ["dpo/k", "sft/k"])) == [f"begun/{KEY}"]


def test_prune_by_age_keeps_recent_artifacts_their_inputs_and_unfinished_ones(store, made):
    store.write_bytes(f"begun/{KEY}/part-00000.parquet", b"x")
    now = datetime.now(UTC)
    assert folders(unneeded(store, [], now - timedelta(days=1))) == []
    later = now + timedelta(days=1)
    assert folders(unneeded(store, ["sft/k"], later)) == ["dpo/k", "responses/other"]
    between = load(store, "responses", "other").ended  # all but `other` and `dpo` are older
    assert folders(unneeded(store, [], between)) == ["responses/k", "sft/k"]


def test_remove_deletes_only_the_given_artifacts(store, made):
    going = unneeded(store, ["sft/k"])
    assert sum(remove(store, each) for each in going) == 4
    assert not store.list("dpo/k")
    assert [name for name, ref in made.items() if find(store, ref.step, ref.key)] == [
        "queries/k",
        "responses/k",
        "sft/k",
    ]


class Stopped(Exception):
    """The process ends here."""


def stopping(monkeypatch, store, after: int) -> None:
    """Have the process end before the n-th write or deletion, from 0."""
    left = [after]

    def counted(method):
        def call(*arguments):
            if not left[0]:
                raise Stopped
            left[0] -= 1
            return method(*arguments)

        return call

    for name in ("write_bytes", "delete"):
        monkeypatch.setattr(type(store), name, counted(getattr(type(store), name)))


def pruned(store, since) -> None:
    for each in unneeded(store, [f"queries/{KEY}"], since):
        remove(store, each)


@pytest.mark.parametrize("since", [None, datetime(2100, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("after", range(6))
def test_a_prune_that_is_interrupted_leaves_no_half_and_the_next_one_finishes_it(store, monkeypatch, since, after):
    """At each of its writes and deletions; an artifact is whole or does not exist, and its rest is found again."""
    kept = make(store, "queries", {}, KEY)
    rows = [[{"id": str(number)}] for number in range(3)]
    for step in ("responses", "scores"):
        write_table(store, step, KEY, SCHEMA, rows, Provenance(inputs={"queries": kept}), rows_per_part=1)
    begun = f"begun/{KEY}/part-00000.parquet"
    store.write_bytes(begun, b"a run is writing it")
    with monkeypatch.context() as patch:
        stopping(patch, store, after)
        with pytest.raises(Stopped):
            pruned(store, since)
    for each in artifacts(store):
        assert (find(store, *each.folder.split("/")) is not None) == (each.manifest is not None)
        assert each.manifest is None or problems(store, each) == []
    pruned(store, since)
    assert [path for path in store.list() if not path.startswith("queries/")] == ([begun] if since else [])
    assert [problems(store, each) for each in artifacts(store) if each.manifest] == [[]]


def test_what_a_prune_left_is_told_by_verify_and_may_be_made_again(store, monkeypatch):
    make(store, "responses", {}, KEY)
    (found,) = artifacts(store)
    with monkeypatch.context() as patch:
        stopping(patch, store, 2)  # the mark is written, the manifest is deleted
        with pytest.raises(Stopped):
            remove(store, found)
    (found,) = artifacts(store)
    assert problems(store, found) == [f"{store.uri('responses', KEY)} is half deleted: run `prune` again"]
    make(store, "responses", {}, KEY)
    (found,) = artifacts(store)
    assert problems(store, found) == []
    assert len(store.list("responses")) == 2


def put(store, s3_url, *keys: str) -> None:
    """Put empty objects into the bucket, as consoles and other tools do."""
    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    for key in keys:
        boto_client(s3_url).put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"")


MARKERS = (
    "",
    "queries/",
    "queries/k/",
    "queries/k/sub/",
    "empty/",
    f"begun/{KEY}/",
    "claims/",
    "runs/",
    "runs/quick-fox/",
)


def test_folder_markers_of_s3_consoles_are_no_files_anywhere(s3_store, s3_url):
    queries = make(s3_store, "queries", {})
    make(s3_store, "sft", {"queries": queries})
    listed = s3_store.list()
    put(s3_store, s3_url, *MARKERS, "queries/k_$folder$", "queries/k/sub_$folder$")
    assert s3_store.list() == listed
    assert folders(artifacts(s3_store)) == ["queries/k", "sft/k"]
    assert [problems(s3_store, each) for each in artifacts(s3_store)] == [[], []]
    assert find(s3_store, "queries", "k") == queries
    assert "queries/k" in lineage(s3_store, ("sft", "k"))
    with claimed(s3_store, "queries", KEY):
        assert s3_store.list("claims") == [f"claims/queries-{KEY}.json"]
    (going,) = unneeded(s3_store, ["queries/k"])
    assert remove(s3_store, going) == 2
    make(s3_store, "sft", {"queries": queries})
    assert folders(artifacts(s3_store)) == ["queries/k", "sft/k"]


@pytest.mark.parametrize("name", ["od\\d", "line\nfeed", "\u200b"])
def test_files_whose_names_are_no_plain_paths_are_left_alone(local_store, name):
    make(local_store, "queries", {})
    (local_store.local_path("queries/k") / name).write_bytes(b"x")
    assert [problems(local_store, each) for each in artifacts(local_store)] == [[]]


def test_prune_takes_no_folder_of_others_for_an_imported_model(store, made):
    store.write_bytes("imported/my-data/raw.csv", b"x")
    store.write_bytes("imported/llama-0123456789abcdef/config.json", b"{}")
    assert folders(unneeded(store, ["dpo/k", "sft/k"])) == ["imported/llama-0123456789abcdef"]


def test_a_row_is_followed_back_to_its_source(store):
    query = {"query": "what ?", "source": "mine.jsonl", "source_row": 41, "reference": None, "criteria": None}
    query |= {"difficulty": None, "topic": None, "step_count": None}
    queries = write_table(
        store, "queries", "k", QUERIES, [[{"query_id": name, **query} for name in ("a", "b")]], Provenance()
    )
    score = {"reward_model": "r", "reward": 1.0, "format_reward": 0.0, "total": 1.0}
    rows = [{"query_id": name, "sample": n, **score} for name in ("a", "b") for n in range(3)]
    scores = write_table(store, "scores", "k", SCORES, [rows], Provenance(inputs={"queries": queries}))
    pair = {"query_id": "b", "iteration": 1, "prompt": "p" * 5000, "chosen": "\x1b[31m", "rejected": "r"}
    pair |= {"chosen_sample": 2, "rejected_sample": 0, "chosen_score": 1.0, "rejected_score": 0.0}
    pair |= {"chosen_tokens": 1, "rejected_tokens": 1}
    inputs = {"scores": scores, "queries": queries}
    write_table(store, "pairs", "k", PAIRS, [[pair]], Provenance(inputs=inputs))
    lines = list(history(store, "pairs", "k", 0))
    assert [line for line in lines if not line.startswith(" ")] == [
        "pairs/k  row 0",
        "queries/k  row 1",
        "scores/k  row 3",
        "scores/k  row 5",
    ]
    assert "    source_row: 41" in lines
    assert "\x1b" not in "".join(lines)  # model text cannot control the terminal
    assert max(map(len, lines)) < 150
    with pytest.raises(ValueError, match="no row 1"):
        list(history(store, "pairs", "k", 1))


def test_a_grade_is_followed_to_its_problem(store):
    query = {"query": "what ?", "source": "mine.jsonl", "source_row": 41, "reference": None, "criteria": None}
    rows = [{"query_id": name, "difficulty": None, "topic": None, "step_count": None, **query} for name in ("a", "b")]
    problems_ = write_table(store, "problems", "k", QUERIES, [rows], Provenance())
    grade = {"sample": 0, "prediction": None, "correct": False, "thought_tokens": 1, "solution_tokens": 1}
    grade |= {"problem_id": "b", "truncated": False, "malformed": False}
    write_table(store, "grades", "k", GRADES, [[grade]], Provenance(inputs={"problems": problems_}))
    lines = list(history(store, "grades", "k", 0))
    assert [line for line in lines if not line.startswith(" ")] == ["grades/k  row 0", "problems/k  row 1"]


def test_a_model_is_followed_too_and_a_torn_artifact_is_drawn(store, made):
    finish(
        store,
        "model",
        "dpo-1",
        "k",
        [],
        [],
        Provenance(inputs={"pairs": made["responses/k"]}),
        None,
        begin(store, "dpo-1", "k"),
    )
    assert "queries/k" in lineage(store, ("dpo-1", "k"))
    store.write_bytes("queries/k/manifest.json", b"{")
    assert "its manifest is torn" in lineage(store, ("dpo-1", "k"))
    assert lineage_picture(store, ("dpo-1", "k")).count(b"<!-- torn -->") == 1


def test_the_picture_shows_every_artifact(store, made):
    svg = lineage_picture(store, ("sft", "k"))
    assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314
    assert svg == lineage_picture(store, ("sft", "k"))
    assert svg.count(b"<!-- sft -->") + svg.count(b"<!-- responses -->") + svg.count(b"<!-- queries -->") == 3
