"""The whole method, small, with its artifacts on a real S3 server; then again from an empty work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import PrefectServer, on_s3, started
from s3_for_tests import new_bucket, s3_settings
from seaweedfs import seaweedfs
from small import SMALLEST

from infra.operations.inventory import artifacts, problems
from infra.store.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def test_the_method_runs_on_seaweedfs_and_another_machine_finds_it_all(prefect: PrefectServer, tmp_path: Path) -> None:
    with seaweedfs(tmp_path / "seaweedfs") as url:
        bucket = new_bucket(url)
        store, seen = Store.open(s3_settings(url, bucket)), set[str]()

        def ran(name: str) -> dict[str, Any]:
            environment = prefect.environment() | on_s3(url, bucket) | {"BOLT_WORK_DIR": str(tmp_path / name)}
            command: list[str | Path] = ["-m", "flows", "bolt/nano"]
            for assignment in SMALLEST:
                command += ["--set", assignment]
            log = tmp_path / f"{name}.log"
            assert started(command, log, environment).wait(900) == 0, log.read_text()[-6000:]
            last = next(path for path in store.list("runs") if path.endswith("/summary.json") and path not in seen)
            seen.add(last)
            summary: dict[str, Any] = json.loads(store.read_bytes(last))
            return summary

        first, again = ran("first"), ran("again")
        assert not all(each["cached"] for each in first["steps"])
        assert all(each["cached"] for each in again["steps"])
        assert again["stages"] == first["stages"]
        whole = list(artifacts(store))
        assert whole
        assert [problems(store, each) for each in whole] == [[]] * len(whole)
