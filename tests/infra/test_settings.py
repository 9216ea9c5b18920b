import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from pydantic import ValidationError

from infra.settings import Settings

HIDDEN = "do-not-print-me"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in list(os.environ):
        if name.startswith("BOLT_"):
            monkeypatch.delenv(name)


def test_defaults():
    settings = Settings.load()
    assert (settings.store, settings.work_dir) == ("./artifacts", Path("./.bolt"))
    assert settings.endpoint_url is settings.access_key_id is None


def test_environment_is_read(monkeypatch):
    monkeypatch.setenv("BOLT_STORE", "s3://bucket/prefix")
    monkeypatch.setenv("BOLT_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setenv("BOLT_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("BOLT_SECRET_ACCESS_KEY", HIDDEN)
    monkeypatch.setenv("BOLT_REGION", "")
    settings = Settings.load()
    assert settings.store == "s3://bucket/prefix"
    assert settings.region is None
    assert settings.secret_access_key.get_secret_value() == HIDDEN


def test_secrets_are_not_shown():
    settings = Settings(access_key_id="the-key-id", secret_access_key=HIDDEN)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert HIDDEN not in shown
    assert "the-key-id" not in shown


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().store = "elsewhere"


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"store": "gs://bucket"}, "s3://bucket/prefix"),
        ({"store": "s3:///prefix"}, "must name a bucket"),
        ({"store": "s3://id:secret@bucket"}, "no credentials"),
        ({"store": " "}, "not be empty"),
        ({"store": "s3:/bucket/prefix"}, "s3://bucket/prefix"),
        ({"store": "s3:bucket"}, "s3://bucket/prefix"),
        ({"store": "file:/folder"}, "file:///folder"),
        ({"store": " s3://bucket/prefix"}, "blank"),
        ({"store": "/folder "}, "blank"),
        ({"store": "~no-such-user/store"}, "no user here"),
        ({"work_dir": "~no-such-user/work"}, "no user here"),
        ({"endpoint_url": "minio:9000"}, "http://host:port"),
        ({"endpoint_url": f"http://id:{HIDDEN}@minio:9000"}, "no credentials"),
        ({"secret_access_key": HIDDEN}, "go together"),
        ({"judge_api_key": f"{HIDDEN}\n"}, "line feeds"),
        ({"policy_api_key": f"{HIDDEN}é"}, "printable ASCII"),
        ({"secret_acess_key": HIDDEN}, "secret_acess_key"),
    ],
)
def test_bad_values_are_refused_without_showing_them(values, hint):
    with pytest.raises(ValidationError, match=hint) as caught:
        Settings(**values)
    assert HIDDEN not in str(caught.value)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(store="~/store", work_dir="~/work")
    assert (settings.store, settings.work_dir) == (f"{tmp_path}/store", tmp_path / "work")


@pytest.fixture(scope="module")
def prefect_blocks() -> Iterator[None]:
    """A Prefect server that keeps the blocks of this file's tests."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.mark.parametrize("name", ["bolt", "secret/bolt"])
@pytest.mark.usefixtures("prefect_blocks")
def test_a_block_is_read_and_the_environment_wins(monkeypatch, name):
    held = {"store": "s3://from-block/x", "region": "eu", "access_key_id": "a", "secret_access_key": HIDDEN}
    Secret(value=held).save("bolt", overwrite=True)
    monkeypatch.setenv("BOLT_SETTINGS_BLOCK", name)
    monkeypatch.setenv("BOLT_REGION", "us")
    settings = Settings.load()
    assert (settings.store, settings.region) == ("s3://from-block/x", "us")
    assert settings.secret_access_key.get_secret_value() == HIDDEN
    assert HIDDEN not in repr(settings)


@pytest.mark.usefixtures("prefect_blocks")
def test_a_block_that_is_no_object_is_refused(monkeypatch):
    Secret(value=HIDDEN).save("no-object", overwrite=True)
    monkeypatch.setenv("BOLT_SETTINGS_BLOCK", "no-object")
    with pytest.raises(ValueError, match="JSON object") as caught:
        Settings.load()
    assert HIDDEN not in str(caught.value)


@pytest.mark.usefixtures("prefect_blocks")
def test_a_block_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("BOLT_SETTINGS_BLOCK", "nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        Settings.load()


def test_import_stays_cheap():
    code = (
        "import infra.settings, infra.store.store, infra.steps.keys, sys\n"
        "print([name for name in ('s3fs', 'botocore', 'prefect', 'torch', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
