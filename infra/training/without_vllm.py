"""TRL's policy-gradient trainers, imported without vLLM.

TRL imports an installed vLLM with them, which takes each rank as long as all the rest, and warns of versions that it
does not know. No trainer here samples with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["GRPOTrainer", "RLOOTrainer"]


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Have whoever looks for a package find none, unless it has been imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the import system's mark of a module that is not there
    try:
        yield
    finally:
        del sys.modules[package]


with absent("vllm"):
    from trl import GRPOTrainer, RLOOTrainer
