"""`python -m infra list | verify | trace | prune`, as a user calls it, on both kinds of store."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from s3_for_tests import KEY, SECRET

from infra.operations.inventory import artifacts, needed
from infra.store.manifest import Manifest, Provenance, Ref
from infra.store.store import Store
from infra.store.tables import write_table

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = pa.schema([pa.field("query_id", pa.string(), nullable=False)])
ALL = ["a/0", "b/1", "b/2", "c/3", "d/4"]  # a <- b/1 <- c; a <- b/2 <- d


def make(store: Store, folder: str, *inputs: Ref) -> Ref:
    step, key = folder.split("/")
    rows = [{"query_id": f"q{n}"} for n in range(3)]
    given = {f"input{n}": ref for n, ref in enumerate(inputs)}
    return write_table(store, step, key, SCHEMA, [rows], Provenance(inputs=given))


@pytest.fixture
def filled(store: Store) -> Store:
    a = make(store, "a/0")
    make(store, "c/3", make(store, "b/1", a))
    make(store, "d/4", make(store, "b/2", a))
    return store


@pytest.fixture
def infra(store: Store, s3_url: str, tmp_path: Path):
    """Call the command; its status, output and errors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BOLT_", "AWS_"))}
    env = kept | {"BOLT_STORE": store.root, "PYTHONPATH": str(ROOT)}
    if not store.is_local:
        env |= {"BOLT_ACCESS_KEY_ID": KEY, "BOLT_SECRET_ACCESS_KEY": SECRET, "BOLT_REGION": "us-east-1"}
        env |= {"BOLT_ENDPOINT_URL": s3_url}

    def call(*words: str) -> tuple[int, list[str], str]:
        command = [sys.executable, "-m", "infra", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert SECRET not in done.stdout + done.stderr
        return done.returncode, done.stdout.splitlines(), done.stderr

    return call


def folders(store: Store) -> list[str]:
    return [found.folder for found in artifacts(store)]


def test_list_and_verify(filled, infra):
    status, lines, errors = infra("list")
    assert (status, errors) == (0, "")
    assert [line.split()[0] for line in lines] == ALL
    assert all(re.search(r"\b3 rows\b", line) for line in lines)
    assert [line.split()[0] for line in infra("list", "b")[1]] == ["b/1", "b/2"]
    assert infra("list", "b/") == infra("list", "b")
    assert infra("verify")[:2] == (0, ["5 artifacts read, 0 not whole"])
    filled.write_bytes("b/2/part-00000.parquet", b"garbage")
    status, lines, _ = infra("verify")
    assert (status, lines[-1]) == (1, "5 artifacts read, 1 not whole")
    assert "b/2/part-00000.parquet has another size" in lines[0]
    assert infra("verify", "b/1")[0] == 0
    assert infra("verify", "b/2")[0] == 1


def test_trace(filled, infra, tmp_path):
    status, lines, _ = infra("trace", "c/3", "--row", "1", "--picture", "lineage.svg")
    assert status == 0
    assert [line.partition("  3 rows")[0] for line in lines[:3]] == ["c/3", "└─ input0: b/1", "   └─ input0: a/0"]
    assert [line for line in lines if "row 1" in line] == ["c/3  row 1", "b/1  row 1", "a/0  row 1"]
    assert ElementTree.parse(tmp_path / "lineage.svg").getroot().tag.endswith("svg")  # noqa: S314


def test_prune_says_first_and_deletes_with_yes(filled, infra):
    status, lines, _ = infra("prune", "--keep", "c/3")
    assert (status, lines[-1]) == (0, "2 artifacts; nothing was deleted: add --yes to delete")
    assert folders(filled) == ALL
    status, lines, _ = infra("prune", "--keep", "c/3", "--yes")
    assert (status, lines) == (0, ["deleted b/2  2 files", "deleted d/4  2 files", "2 artifacts"])
    assert folders(filled) == ["a/0", "b/1", "c/3"]
    assert infra("prune", "--days", "1", "--yes")[1] == ["0 artifacts"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prune",), "nothing to keep: give --keep"),
        (("prune", "--keep", "no/such"), "nothing to keep at no/such"),
        (("verify", "no/such"), "no artifact no/such"),
        (("trace", "a/0", "--row", "9"), "no row 9"),
        (("trace", "no/such", "--row", "0"), "no/such is not a table"),
        (("trace", "a"), "a: expected an artifact STEP/KEY"),
        (("trace", "a/0/"), "a/0/: expected an artifact STEP/KEY"),
        (("trace", "a/0", "--picture", "no/such.svg"), "No such file or directory: 'no/such.svg'"),
        (("prune", "--days", "-5", "--yes"), "-5: expected a number of days from 0 to 36500"),
        (("prune", "--keep", "../../etc"), "nothing to keep at"),
    ],
)
def test_what_cannot_be_done_is_told(filled, infra, words, said):
    status, _, errors = infra(*words)
    assert status == 2
    assert said in errors
    assert "Traceback" not in errors
    assert folders(filled) == ALL


@pytest.mark.parametrize("days", ["-0.1", "-inf", "inf", "nan", "1e300", "36501", "many"])
def test_days_that_cannot_be_meant_delete_nothing(local_store, monkeypatch, capsys, days):
    from infra.__main__ import main

    monkeypatch.setenv("BOLT_STORE", local_store.root)
    make(local_store, "a/0")
    with pytest.raises(SystemExit) as ended:
        main(["prune", f"--days={days}", "--yes"])
    assert ended.value.code == 2
    assert "argument --days: " in capsys.readouterr().err
    assert folders(local_store) == ["a/0"]


@pytest.mark.parametrize("seed", range(20))
def test_prune_in_any_graph_leaves_all_that_the_kept_were_made_from(local_store, seed, capsys, monkeypatch):
    from infra.__main__ import main

    monkeypatch.setenv("BOLT_STORE", local_store.root)
    chance = random.Random(seed)
    made: list[Ref] = []
    for number in range(12):
        made.append(make(local_store, f"s{number}/k", *chance.sample(made, min(len(made), chance.randrange(3)))))
    manifests: list[Manifest] = [found.manifest for found in artifacts(local_store) if found.manifest]
    kept = chance.sample([each.folder for each in manifests], chance.randrange(1, 4))
    stay = needed(manifests, kept)
    assert main(["prune", "--yes", *(word for each in kept for word in ("--keep", each))]) == 0
    assert set(folders(local_store)) == stay
    assert main(["verify"]) == 0
    for each in manifests:  # nothing that stays misses an input
        if each.folder in stay:
            assert all(f"{ref.step}/{ref.key}" in stay for ref in each.inputs.values())
    assert capsys.readouterr().out.endswith(f"{len(stay)} artifacts read, 0 not whole\n")
