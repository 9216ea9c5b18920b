"""Checkpoints on disk: which one counts, and which training may go on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from interrupted import made

from infra.errors import BadInput
from infra.store.manifest import MANIFEST
from infra.training.checkpoints import (
    KEPT,
    check_settings,
    checkpoint_name,
    checkpoints_folder,
    newest,
    prune,
    read,
)
from infra.training.config import DpoConfig, SftConfig, resumable_settings


def test_the_last_whole_checkpoint_counts(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    for step in (9, 10, 100):
        made(tmp_path, step)
    last = newest(tmp_path)
    assert last
    assert (read(last).step, read(last).steps, read(last).seconds) == (100, 40, 200.0)


def torn_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut_file(folder: Path) -> None:
    with (folder / "global_step" / "weights.pt").open("rb+") as file:
        file.truncate(500)


def changed_file(folder: Path) -> None:
    (folder / "global_step" / "weights.pt").write_bytes(b"x" * 1000)


def lost_file(folder: Path) -> None:
    (folder / "global_step" / "weights.pt").unlink()


@pytest.mark.parametrize("damage", [torn_manifest, no_manifest, cut_file, changed_file, lost_file])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(damage: Any, tmp_path: Path) -> None:
    before = made(tmp_path, 10)
    damage(made(tmp_path, 11))
    assert newest(tmp_path) == before
    damage(before)
    assert newest(tmp_path) is None


def test_old_checkpoints_and_what_a_kill_left_are_deleted(tmp_path: Path) -> None:
    for step in range(1, 6):
        made(tmp_path, step)
    no_manifest(made(tmp_path, 6))
    prune(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [checkpoint_name(4), checkpoint_name(5)]
    assert KEPT == 2


PATHS = {"model": "m", "data": ("d",), "output": "o"}


def settings_of(ranks: int = 2, **changes: Any) -> dict[str, Any]:
    return resumable_settings(SftConfig(**PATHS, **changes), ranks)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (settings_of(ranks=4), "ranks was 2 and is now 4"),
        (settings_of(learning_rate=1e-3), r"learning_rate was 2e-05 and is now 0.001"),
        (settings_of(zero_stage=3, batch=64), "batch was 128 and is now 64, zero_stage was 2 and is now 3"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(now: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = made(tmp_path, 10, **settings_of())
    with pytest.raises(BadInput, match=rf"step 10 of 40.*{said}.*delete {tmp_path} to start") as error:
        check_settings(folder, now)
    assert str(folder) in str(error.value)


def test_what_does_not_change_the_model_may_change(tmp_path: Path) -> None:
    folder = made(tmp_path, 10, **settings_of())
    check_settings(folder, settings_of(checkpoint_minutes=1))
    paths = {**PATHS, "output": "other", "resume": folder}
    check_settings(folder, resumable_settings(SftConfig(**paths), 2))


def test_settings_are_plain_json() -> None:
    dpo = resumable_settings(DpoConfig(**PATHS, reference="r"), 2)
    assert json.loads(json.dumps(dpo)) == dpo
    assert not {"model", "data", "output", "reference", "resume"} & set(dpo)


def test_checkpoints_are_beside_the_model() -> None:
    assert checkpoints_folder(Path("work/model")) == Path("work/model.checkpoints")
