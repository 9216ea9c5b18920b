"""Stores to test against: a local folder, and a real S3 server (moto) reached over HTTP."""

from pathlib import Path

import pytest
from s3_for_tests import s3_bucket, s3_settings, s3_url

from infra.settings import Settings
from infra.store.store import Store

__all__ = ["s3_bucket", "s3_url"]


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.open(Settings(store=str(tmp_path / "artifacts")))


@pytest.fixture
def s3_store(s3_url, s3_bucket) -> Store:
    return Store.open(s3_settings(s3_url, s3_bucket))


@pytest.fixture(params=["local", "s3"])
def store(request) -> Store:
    """Each store in turn."""
    return request.getfixturevalue(f"{request.param}_store")
