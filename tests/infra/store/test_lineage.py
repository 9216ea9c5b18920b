import pyarrow as pa
import pytest

from infra.store.lineage import lineage
from infra.store.tables import Provenance, write_table

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False)])


def make(store, step, inputs, count=2):
    rows = [{"id": f"{step}{i}"} for i in range(count)]
    return write_table(store, step, "k", SCHEMA, [rows], Provenance(inputs=inputs))


@pytest.fixture
def chain(local_store):
    queries = make(local_store, "queries", {}, 1500)
    responses = make(local_store, "responses", {"queries": queries})
    scores = make(local_store, "scores", {"responses": responses})
    pairs = make(local_store, "pairs", {"responses": responses, "scores": scores})
    return {"queries": queries, "responses": responses, "scores": scores, "pairs": pairs}


def test_tree(local_store, chain):
    short = {step: ref.digest[:12] for step, ref in chain.items()}
    expected = f"""\
pairs/k  2 rows  sha256 {short["pairs"]}
├─ responses: responses/k  2 rows  sha256 {short["responses"]}
│  └─ queries: queries/k  1,500 rows  sha256 {short["queries"]}
└─ scores: scores/k  2 rows  sha256 {short["scores"]}
   └─ responses: responses/k  2 rows  sha256 {short["responses"]}  (inputs as above)"""
    assert lineage(local_store, chain["pairs"]) == expected
    assert lineage(local_store, ("pairs", "k")) == expected


def test_what_is_gone_torn_or_made_again_is_marked(local_store, chain):
    make(local_store, "queries", {}, 3)
    assert "(made again since)" in lineage(local_store, chain["pairs"])
    local_store.delete("queries/k/manifest.json")
    assert "queries: queries/k  (gone)" in lineage(local_store, chain["pairs"])
    local_store.write_bytes("queries/k/manifest.json", b"{")
    assert "queries: queries/k  (its manifest is torn)" in lineage(local_store, chain["pairs"])
    assert lineage(local_store, ("no", "where")) == "no/where  (gone)"
