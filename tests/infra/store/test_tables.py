import json
import logging
import tempfile
import threading
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.processes import watchdog
from infra.settings import Settings
from infra.store import parts, schemas, tables
from infra.store.manifest import BadArtifact, Provenance, read_manifest
from infra.store.parts import find
from infra.store.store import Store
from infra.store.tables import RowError, read_rows, read_table, scan, scan_shard, write_table

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("n", pa.int64()),
        pa.field("small", pa.int32()),
        pa.field("x", pa.float64()),
        pa.field("flag", pa.bool_()),
        pa.field("tags", pa.list_(pa.string())),
    ]
)
NONE = Provenance()


def rows_of(count: int) -> list[dict]:
    return [
        {"id": f"é{i}", "n": i, "small": i, "x": i / 3, "flag": i % 2 == 0, "tags": ["a"] * (i % 3)}
        for i in range(count)
    ]


def write(store, rows, key="k", **options):
    return write_table(store, "step", key, SCHEMA, [rows], options.pop("provenance", NONE), **options)


@pytest.fixture(autouse=True)
def _forget():
    parts._memo.clear()


# --- what is written is read ----------------------------------------------------------------------------------------

optional = st.none
rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(),
            "n": optional() | st.integers(-(2**63), 2**63 - 1),
            "small": optional() | st.integers(-(2**31), 2**31 - 1),
            "x": optional() | st.floats(allow_nan=False),
            "flag": optional() | st.booleans(),
            "tags": optional() | st.lists(st.text(max_size=3), max_size=3),
        }
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rows=rows_strategy, cut=st.integers(0, 12), per_part=st.integers(1, 7), group=st.integers(1, 5))
def test_rows_come_back_however_they_are_cut(rows, cut, per_part, group):
    with tempfile.TemporaryDirectory() as folder, patch.object(tables, "GROUP_ROWS", group):
        store = Store.open(Settings(store=folder))
        ref = write_table(store, "s", "whole", SCHEMA, [rows], NONE, rows_per_part=per_part)
        pieces = [rows[:cut], pa.Table.from_pylist(rows[cut:], schema=SCHEMA)]
        again = write_table(store, "s", "pieces", SCHEMA, iter(pieces), NONE, rows_per_part=per_part)
        assert list(read_rows(store, ref)) == rows
        assert read_table(store, ref).schema == SCHEMA
        assert (ref.rows, ref.digest) == (len(rows), again.digest)
        assert find(store, "s", "whole") == ref
        sizes = [part["rows"] for part in read_manifest(store, ref)["parts"]]
        assert all(size == per_part for size in sizes[:-1])
        assert sum(sizes) == len(rows)


@given(st.lists(st.integers(0, 40), max_size=4), st.integers(1, 9), st.integers(1, 16))
@settings(max_examples=40)
def test_shards_hold_every_row_once_and_in_order(sizes, shards, batch_rows):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Settings(store=folder))
        refs = [write_table(store, "t", str(n), SCHEMA, [rows_of(size)], NONE) for n, size in enumerate(sizes)]
        found = [
            [
                row
                for batch in scan_shard(store, refs, shard, shards, batch_rows=batch_rows)
                for row in batch.to_pylist()
            ]
            for shard in range(shards)
        ]
    assert [row for part in found for row in part] == [row for size in sizes for row in rows_of(size)]
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_on_each_store(store):
    rows = rows_of(25)
    ref = write(store, rows, rows_per_part=10)
    assert list(read_rows(store, ref)) == rows
    assert read_table(store, ref, columns=["n", "id"]).to_pylist() == [{"n": r["n"], "id": r["id"]} for r in rows]
    assert [batch.num_rows for batch in scan(store, ref, batch_rows=4)] == [4, 4, 2, 4, 4, 2, 4, 1]
    assert find(store, "step", "k") == ref
    assert ref.uri == store.uri("step", "k")
    assert store.list("step/k") == ["step/k/manifest.json", *(f"step/k/part-{i:05d}.parquet" for i in range(3))]


def test_an_empty_table_keeps_its_schema(store):
    ref = write(store, [])
    assert (ref.rows, find(store, "step", "k")) == (0, ref)
    assert read_table(store, ref).schema == SCHEMA
    assert read_table(store, ref, columns=["x"]).schema.names == ["x"]


def test_parts_are_plain_zstd_parquet(local_store):
    write(local_store, rows_of(5))
    file = pq.ParquetFile(local_store.local_path("step/k/part-00000.parquet"))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read().to_pylist() == rows_of(5)


def test_manifest(local_store):
    source = write(local_store, rows_of(3), key="source")
    seen = []

    def batches():
        for row in rows_of(4):
            seen.append(row)
            yield [row]

    provenance = Provenance(inputs={"source": source}, config={"keep": 0.3}, code="abc")
    ref = write_table(
        local_store, "step", "k", SCHEMA, batches(), provenance, counts=lambda: {"in": 9, "out": len(seen)}
    )
    manifest = read_manifest(local_store, ref)
    assert manifest == json.loads(local_store.read_bytes("step/k/manifest.json"))
    assert manifest["schema"][:2] == [
        {"name": "id", "type": "string", "nullable": False},
        {"name": "n", "type": "int64", "nullable": True},
    ]
    assert manifest["counts"] == {"in": 9, "out": 4}
    assert manifest["inputs"]["source"]["digest"] == source.digest
    assert (manifest["config"], manifest["code"], manifest["rows"]) == ({"keep": 0.3}, "abc", 4)
    assert manifest["libraries"]["pyarrow"] == pa.__version__
    assert manifest["started"] <= manifest["ended"]


def test_digest_is_of_the_content_alone(local_store):
    one = write(local_store, rows_of(3))
    two = write(local_store, rows_of(3), key="other", provenance=Provenance(config={"a": 1}), counts={"n": 1})
    assert one.digest == two.digest
    assert write(local_store, rows_of(4)).digest != one.digest
    narrow = write_table(local_store, "s", "k", SCHEMA.remove(5), [[{"id": "a"}]], NONE)
    renamed = SCHEMA.remove(5).set(1, pa.field("m", pa.int64()))
    assert write_table(local_store, "s", "k", renamed, [[{"id": "a"}]], NONE).digest != narrow.digest


def test_project_schemas_round_trip(local_store):
    sample = {"string": "ü", "int32": 1, "int64": 2, "double": 0.5, "bool": True, "list<item: string>": ["a"]}
    for name in ("EXAMPLES", "QUERIES", "RESPONSES", "SCORES", "LONGCOT", "PAIRS", "GRADES"):
        schema = getattr(schemas, name)
        full = {field.name: sample[str(field.type)] for field in schema}
        sparse = {field.name: None if field.nullable else full[field.name] for field in schema}
        ref = write_table(local_store, name, "k", schema, [[full, sparse]], NONE)
        assert list(read_rows(local_store, ref)) == [full, sparse]


# --- rows that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": None}, "column id, row 7: expected string not null, found none"),
        ({}, "column id, row 7: expected string not null"),
        ({"id": 5}, "column id, row 7: expected string not null, found int 5"),
        ({"id": "\ud800"}, "column id, row 7: expected string"),
        ({"id": "a", "n": "5"}, "column n, row 7: expected int64 or null, found str '5'"),
        ({"id": "a", "n": 2**63}, "column n, row 7: expected int64"),
        ({"id": "a", "small": 2**31}, "column small, row 7: expected int32"),
        ({"id": "a", "n": 1.5}, "column n, row 7: expected int64"),
        ({"id": "a", "n": True}, "column n, row 7: expected int64 or null, found bool True"),
        ({"id": b"a"}, "column id, row 7: expected string not null, found bytes b'a'"),
        ({"id": "a", "x": True}, "column x, row 7: expected double or null, found bool True"),
        ({"id": "a", "tags": "abc"}, "column tags, row 7: expected list<item: string> or null, found str 'abc'"),
        ({"id": "a", "tags": [1]}, "column tags, row 7: expected list<item: string>"),
        ({"id": "a", "extra": 1}, "row 7: unknown column extra"),
    ],
)
def test_a_row_that_does_not_fit_is_told(local_store, row, complaint):
    with pytest.raises(RowError) as caught:
        write_table(local_store, "step", "k", SCHEMA, [rows_of(4), [*rows_of(3), row, *rows_of(2)]], NONE)
    assert complaint in str(caught.value)
    assert "table step/k" in str(caught.value)
    assert local_store.list() == []


def test_arrow_batches_must_have_the_schema(local_store):
    good = pa.Table.from_pylist(rows_of(3), schema=SCHEMA)
    swapped = good.select(SCHEMA.names[::-1])
    ref = write_table(local_store, "step", "k", SCHEMA, [good, swapped.to_batches()[0]], NONE)
    assert read_table(local_store, ref).to_pylist() == rows_of(3) * 2
    with pytest.raises(RowError, match="column n, row 3: expected int64 or null, found a column of double"):
        write_table(local_store, "step", "k", SCHEMA, [good, good.set_column(1, "n", pa.array([0.5] * 3))], NONE)
    with pytest.raises(RowError, match="rows from 0: expected the columns id, n"):
        write_table(local_store, "step", "k", SCHEMA, [good.drop_columns("n")], NONE)
    holes = good.set_column(0, "id", pa.array(["a", None, "c"]))
    with pytest.raises(RowError, match="column id, row 4: expected string not null, found none"):
        write_table(local_store, "step", "k", SCHEMA, [good, holes], NONE)


# --- crashes and corruption -----------------------------------------------------------------------------------------


def crash(store, key="k"):
    def batches():
        yield rows_of(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(store, "step", key, SCHEMA, batches(), NONE, rows_per_part=10)


def test_a_crashed_writer_leaves_no_table_and_its_parts_are_cleared(store):
    crash(store)
    assert find(store, "step", "k") is None
    assert len(store.list("step/k")) >= 2
    ref = write(store, rows_of(5))
    assert store.list("step/k") == ["step/k/manifest.json", "step/k/part-00000.parquet"]
    assert (find(store, "step", "k"), list(read_rows(store, ref))) == (ref, rows_of(5))


def test_a_crash_over_a_whole_table_does_not_leave_the_old_manifest(local_store):
    write(local_store, rows_of(5))
    crash(local_store)
    assert find(local_store, "step", "k") is None


def test_nothing_is_found_where_nothing_is(store, caplog):
    assert find(store, "step", "k") is None
    assert caplog.text == ""


def flip(store, path):
    data = bytearray(store.read_bytes(path))
    data[len(data) // 2] ^= 1
    store.write_bytes(path, bytes(data))


def damage_part(store):
    flip(store, "step/k/part-00001.parquet")


def shorten_part(store):
    store.write_bytes("step/k/part-00001.parquet", store.read_bytes("step/k/part-00001.parquet")[:-1])


def drop_part(store):
    store.delete("step/k/part-00001.parquet")


def tear_manifest(store):
    store.write_bytes("step/k/manifest.json", store.read_bytes("step/k/manifest.json")[:-20])


def alter_manifest(store):
    text = store.read_bytes("step/k/manifest.json").decode()
    digest = json.loads(text)["parts"][1]["sha256"]
    store.write_bytes("step/k/manifest.json", text.replace(digest, "0" * 64).encode())


def empty_manifest(store):
    store.write_bytes("step/k/manifest.json", b"\0" * 100)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_part, ["part-00001.parquet is corrupt", "expected", "found"]),
        (shorten_part, ["part-00001.parquet has another size", "expected", "found"]),
        (drop_part, ["part-00001.parquet is missing", "expected"]),
        (tear_manifest, ["manifest.json is torn or corrupt"]),
        (alter_manifest, ["manifest.json is torn or corrupt", "digest"]),
        (empty_manifest, ["manifest.json is torn or corrupt"]),
    ],
)
def test_a_damaged_table_does_not_count_and_is_made_again(store, damage, words, caplog):
    ref = write(store, rows_of(25), rows_per_part=10)
    assert find(store, "step", "k") == ref
    damage(store)
    with caplog.at_level(logging.WARNING):
        assert find(store, "step", "k") is None
    for word in ["artifact step/k", "will be made again", store.root, *words]:
        assert word in caplog.text
    with pytest.raises(BadArtifact, match=words[0].replace(".", r"\.")):
        read_table(store, ref)
    assert write(store, rows_of(25), rows_per_part=10) == ref
    assert list(read_rows(store, ref)) == rows_of(25)


def test_bad_rows_are_never_given_out(local_store):
    ref = write(local_store, rows_of(25), rows_per_part=10)
    damage_part(local_store)
    given = []
    with pytest.raises(BadArtifact, match="part-00001"):
        given.extend(read_rows(local_store, ref))
    assert given == rows_of(10)


def test_foreign_files_are_ignored_and_told(store, caplog):
    ref = write(store, rows_of(5))
    store.write_bytes("step/k/part-00009.parquet", b"not mine")
    assert find(store, "step", "k") == ref
    assert "ignoring" in caplog.text
    assert "part-00009.parquet" in caplog.text
    assert list(read_rows(store, ref)) == rows_of(5)


def test_a_moved_folder_is_not_taken_for_another(local_store, caplog):
    write(local_store, rows_of(5))
    local_store.local_path("step/k").rename(local_store.local_path("step/other"))
    assert find(local_store, "step", "other") is None
    assert "another artifact" in caplog.text


def test_reading_what_is_gone_or_made_again(local_store):
    ref = write(local_store, rows_of(5))
    write(local_store, rows_of(6))
    with pytest.raises(BadArtifact, match="made again with other content"):
        read_table(local_store, ref)
    local_store.delete("step/k/manifest.json")
    with pytest.raises(BadArtifact, match="does not exist"):
        read_manifest(local_store, ref)


def test_unknown_column(local_store):
    with pytest.raises(ValueError, match="table step/k has no column y; it has id"):
        read_table(local_store, write(local_store, rows_of(5)), columns=["id", "y"])


def test_repeated_finds_do_not_hash_again(store, monkeypatch):
    ref = write(store, rows_of(5))
    monkeypatch.setattr("infra.store.store.SETTLED_S", -1.0)
    assert find(store, "step", "k") == ref
    monkeypatch.setattr(parts, "_hash", lambda *_: pytest.fail("hashed again"))
    assert find(store, "step", "k") == ref
    monkeypatch.undo()
    flip(store, "step/k/part-00000.parquet")
    assert find(store, "step", "k") is None


def test_memory_does_not_grow_with_the_table(local_store):
    text = "x" * 1000

    def batches():
        for start in range(0, 100_000, 1000):
            yield [{"id": f"{start + i} {text}"} for i in range(1000)]

    before = pa.total_allocated_bytes()
    peak = 0

    def watched():
        nonlocal peak
        for batch in batches():
            peak = max(peak, pa.total_allocated_bytes() - before)
            yield batch

    schema = pa.schema([pa.field("id", pa.string(), nullable=False)])
    ref = write_table(local_store, "step", "k", schema, watched(), NONE, rows_per_part=20_000)
    for batch in scan(local_store, ref):
        peak = max(peak, pa.total_allocated_bytes() - before)
        del batch
    assert peak < 60 * 2**20, f"100 MB of rows took {peak / 2**20:.0f} MiB"


def test_a_process_that_is_told_to_end_writes_no_table_to_its_end(local_store, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(watchdog, "ending", told)

    def batches():
        yield [{"id": "a"}]
        told.set()
        yield [{"id": "b"}]
        raise AssertionError("it went on")

    schema = pa.schema([pa.field("id", pa.string())])
    with pytest.raises(watchdog.EndingError):
        write_table(local_store, "step", "k", schema, batches(), Provenance())
    assert find(local_store, "step", "k") is None
