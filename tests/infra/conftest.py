"""Stores to test against: a local folder, and two S3 servers reached over HTTP, moto and SeaweedFS.

A test that takes `store` runs on a folder and on S3; one that takes `s3_store`, `s3_bucket` or `s3_url` on S3. S3 is
moto, and for the tests of the store itself SeaweedFS too, unless a test is marked `moto`, since it uses what only moto
has.
"""

from pathlib import Path

import pytest
from s3_for_tests import moto_url, new_bucket, s3_settings
from seaweedfs import seaweedfs

from infra.settings import Settings
from infra.store.store import Store

__all__ = ["moto_url"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        of_store = metafunc.definition.path.parent.name == "store"
        only_moto = not of_store or metafunc.definition.get_closest_marker("moto")
        servers = ["moto"] if only_moto else ["moto", "seaweedfs"]
        folder = ["local"] if "store" in metafunc.fixturenames else []
        metafunc.parametrize("place", [*folder, *servers], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    """What kind of store a test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def seaweedfs_url(tmp_path_factory: pytest.TempPathFactory):
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@pytest.fixture
def s3_url(place: str, request: pytest.FixtureRequest) -> str:
    """Address of an S3 server; of none if the test's store is a folder."""
    return "" if place == "local" else str(request.getfixturevalue(f"{place}_url"))


@pytest.fixture
def s3_bucket(s3_url: str) -> str:
    return new_bucket(s3_url)


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.open(Settings(store=str(tmp_path / "artifacts")))


@pytest.fixture
def s3_store(s3_url: str, s3_bucket: str) -> Store:
    return Store.open(s3_settings(s3_url, s3_bucket))


@pytest.fixture
def store(place: str, request: pytest.FixtureRequest) -> Store:
    """Each store in turn."""
    found: Store = request.getfixturevalue("local_store" if place == "local" else "s3_store")
    return found
