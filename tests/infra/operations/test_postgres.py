"""`make up` with PostgreSQL, by one setting, on a temporary cluster. Skipped if PostgreSQL is not installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.infra.operations.test_stack import Local

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]
FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"), Path("/usr/bin")]
BIN = next((folder for folder in FOLDERS if (folder / "initdb").exists() and (folder / "postgres").exists()), None)
PASSWORD = "password-of-the-test"  # noqa: S105
if BIN is None:
    pytest.skip(
        "PostgreSQL (initdb and postgres) is not installed: apt-get install postgresql", allow_module_level=True
    )


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a new database. PostgreSQL refuses to run as root; then it runs as `nobody`."""
    assert BIN is not None
    folder = Path("/tmp") / f"bolt-postgres-{os.getpid()}"  # noqa: S108  # `nobody` may not enter pytest's folders
    folder.mkdir()
    (folder / "password").write_text(PASSWORD)
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    for path in (folder, folder / "password"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    subprocess.run(
        [BIN / "initdb", "-D", folder / "data", "-U", "bolt", "--auth=scram-sha-256", "--pwfile", folder / "password"],
        check=True, capture_output=True, cwd=folder, **identity,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [BIN / "postgres", "-D", folder / "data", *options], stdout=log, stderr=log, cwd=folder, **identity
        )
    try:
        while "ready to accept connections" not in (folder / "log").read_text():
            assert server.poll() is None, (folder / "log").read_text()
        yield f"postgresql+asyncpg://bolt:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_everything_is_deployed_with_postgresql_and_only_the_server_has_its_address(
    database: str, tmp_path: Path
) -> None:
    local = Local(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=database)
    try:
        output = local.up()
        with local.client() as client:
            assert client.read_deployment_by_name("bolt/nano").work_pool_name == "bolt-gpu"
            assert client.read_automations_by_name("bolt: a run's process vanished")
        run = local.run("rerun/scheduled", {"config": {"dry_run": True}})
        assert local.ended(run, 300).state_name == "Completed"
        assert not (local.home / "stack" / "prefect.db").exists()
        for name, process in local.stack.processes.items():
            for each in process.members():
                assert PASSWORD not in " ".join(each.cmdline())
                assert (PASSWORD in str(psutil.Process(each.pid).environ())) == (name == "server")
        texts = [path.read_text() for path in [*local.home.rglob("*.log"), local.home / "stack.json"]]
        assert PASSWORD not in output + "".join(texts)
    finally:
        local.down()
