"""The folder of a run's pages, for any name of the run, and for two runs of the same name."""

from __future__ import annotations

import re

import pytest
from prefect import flow

from flows.stages.summary import run_folder
from infra.settings import Settings
from infra.store.store import Store


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("name", "start"), [("able-eagle", "able-eagle"), ("../a//b \n\x00é/", "..-a-b-"), ("/", "-")])
def test_a_run_has_a_folder_of_its_own_in_the_store(name, start, tmp_path):
    store = Store.open(Settings(store=str(tmp_path)))
    named = flow(run_folder, name="named", flow_run_name=name)
    folders = [named() for _ in range(2)]
    assert len(set(folders)) == 2
    for folder in folders:
        assert re.fullmatch(re.escape(start) + r"-[0-9a-f]{8}", folder)
        store.write_bytes(f"runs/{folder}/summary.json", b"{}")
    assert store.list("runs") == sorted(f"runs/{folder}/summary.json" for folder in folders)
