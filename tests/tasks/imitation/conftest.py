from __future__ import annotations

import pytest
from fakes import TinyServers


@pytest.fixture
def servers(world) -> TinyServers:
    return TinyServers(world.work_dir)
