from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import datasets
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from infra.errors import BadInput
from tasks.queries.hub import explained
from tasks.queries.sources import Skipped, Source, queries_of, records

PLACE = "org/name@0123abc:train"


def refusal(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("'org/name' is gated"), BadInput, "no access.*gated.*HF_TOKEN"),
        (GatedRepoError("403", response=refusal(403)), BadInput, "no access.*accept its terms on the hub"),
        (HfHubHTTPError("401", response=refusal(401)), BadInput, "no access.*check the name"),
        (ValueError("Unknown split"), BadInput, "ValueError: Unknown split.*check subset and split"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), BadInput, "refs/convert/parquet"),
        (datasets.exceptions.DataFilesNotFoundError("no data"), BadInput, "no files that can be read.*refs/convert"),
        (datasets.exceptions.DatasetGenerationError("broken"), BadInput, "cannot be read"),
        (NotImplementedError("tar in streaming"), BadInput, "cannot be read"),
        (KeyError("train"), BadInput, "cannot be read"),
        (ImportError("please install 'Pillow'"), BadInput, "a package is missing.*Pillow"),
        (OfflineModeIsEnabled("offline"), BadInput, "HF_HUB_OFFLINE is set"),
        (
            ConnectionError("Couldn't reach"),
            ConnectionError,
            "cannot be reached.*check the network.*HF_ENDPOINT.*`path`",
        ),
        (LocalEntryNotFoundError("offline"), ConnectionError, "the hub cannot be reached"),
        (TimeoutError(), ConnectionError, "the hub cannot be reached"),
        (httpx.ConnectError("refused"), ConnectionError, "the hub cannot be reached"),
        (aiohttp.ClientConnectionError("refused"), ConnectionError, "the hub cannot be reached"),
        (aiohttp.ClientPayloadError("cut"), ConnectionError, "the hub cannot be reached"),
        (HfHubHTTPError("503", response=refusal(503)), ConnectionError, "the hub cannot be reached"),
        (HfHubHTTPError("429", response=refusal(429)), ConnectionError, "the hub cannot be reached"),
    ],
)
def test_errors_of_the_datasets_library_say_what_where_and_how_to_fix_it(monkeypatch, error, kind, message):
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(kind, match=rf"(?s)^{PLACE}: .*{message}") as found:
        list(queries_of(Source(dataset="org/name@0123abc")))
    assert type(found.value) is kind  # an outage is transient, all else is the user's to put right
    assert "\n" not in str(found.value)


def test_an_error_in_the_middle_of_a_data_set_is_explained_too(monkeypatch):
    def rows() -> Any:
        yield {"query": "one"}
        raise RuntimeError("odd")

    made = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    rows = queries_of(Source(dataset="org/name@0123abc"))
    assert next(rows)["query"] == "one"
    with pytest.raises(BadInput, match=f"{PLACE}: cannot be read"):
        next(rows)


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set that the library takes for org/name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "org/name").mkdir(parents=True)
    return tmp_path / "org/name"


CARD = "---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: a.jsonl\n---\n"


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (
            {"a.jsonl": '{"query": "x"}\n'},
            {"split": "test"},
            "Bad split: test. Available splits.*check subset and split",
        ),
        ({"a.jsonl": '{"query": "x"}\n'}, {"subset": "c"}, "BuilderConfig 'c' not found.*check subset and split"),
        ({"a.jsonl": '{"query": "x"}\n', "README.md": CARD}, {}, "Config name is missing.*'a', 'b'.*check subset"),
        ({"a.jsonl": '{"query": "x"}\n{"qu'}, {}, "its files are broken"),
        ({"a.parquet": "PAR1 and no more"}, {}, "its files are broken"),
        ({"name.py": "x = 1"}, {}, "has no files that can be read as they are.*refs/convert/parquet"),
        ({}, {}, "has no files that can be read as they are"),
    ],
)
def test_what_the_library_really_raises_is_explained(data_set, files, given, message):
    for name, text in files.items():
        (data_set / name).write_text(text)
    with pytest.raises(BadInput, match=rf"(?s)^org/name@main:.*{message}"):
        list(queries_of(Source(dataset="org/name@main", **given)))


def test_a_real_data_set_is_read(data_set):
    (data_set / "a.jsonl").write_text('{"conversation": [{"role": "user", "content": "Why?"}]}\n')
    assert [row["query"] for row in queries_of(Source(dataset="org/name@main"))] == ["Why?"]


MEDIUM = pa.array([{"bytes": b"broken", "path": None}] * 3)
BROKEN = {
    "image": (MEDIUM, datasets.Image()),
    "audio": (MEDIUM, datasets.Audio()),
    "date": (pa.array([2**58] * 3, pa.timestamp("us")), datasets.Value("timestamp[us]")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_column_that_is_not_needed_is_not_read(data_set, name):
    column, kind = BROKEN[name]
    features = datasets.Features({"query": datasets.Value("string"), name: kind})
    pq.write_table(pa.table([["a", "b", "c"], column], schema=features.arrow_schema), data_set / "a.parquet")
    assert [row["query"] for row in queries_of(Source(dataset="org/name@main"))] == ["a", "b", "c"]


def test_a_row_that_is_not_utf8_is_counted_and_skipped(data_set):
    latin = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"\xe9t\xe9", b"two"]).buffers())
    pq.write_table(pa.table({"query": latin}), data_set / "a.parquet")
    source, skipped = Source(dataset="org/name@main"), Skipped("org/name")
    assert [(row["query"], row["source_row"]) for row in queries_of(source, skipped)] == [("one", 0), ("two", 2)]
    assert skipped.reasons == {"malformed": 1}
    with pytest.raises(BadInput, match=r"^org/name@main:train, row 1: field query cannot be read"):
        list(queries_of(source))


def test_rows_are_those_of_the_library(data_set):
    features = datasets.Features({"query": datasets.Value("string"), "turns": datasets.List(datasets.Json())})
    rows = [{"query": str(n), "turns": [{"n": n}, "x"]} for n in range(1_100)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(data_set / "a.parquet")
    assert list(records(Source(dataset="org/name@main"), whole=True)) == list(enumerate(rows))


def test_the_message_is_cut_to_a_paragraph():
    assert len(str(explained(ValueError("x " * 10_000), PLACE))) < 800
