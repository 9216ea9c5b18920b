import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from infra.store import models, parts
from infra.store.manifest import BadArtifact, Provenance, read_manifest
from infra.store.models import ModelError, fetch_model, import_model, publish_model
from infra.store.parts import find
from infra.store.store import StoreError

NONE = Provenance()


@pytest.fixture(autouse=True)
def _forget():
    parts._memo.clear()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "nested").mkdir(parents=True)
    save_file({"w": np.arange(1000, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "nested" / "tokenizer.json").write_text("{}")
    (folder / ".gitattributes").write_text("hidden")
    return folder


def test_publish_and_fetch(store, folder, tmp_path):
    ref = publish_model(store, "sft", "k", folder, NONE, counts={"steps": 3})
    assert (ref.kind, ref.rows) == ("model", 3)
    assert find(store, "sft", "k") == ref
    local = fetch_model(store, ref, tmp_path / "work")
    assert load_file(local / "model.safetensors")["w"][-1] == 999
    assert (local / "nested" / "tokenizer.json").read_text() == "{}"
    assert not (local / ".gitattributes").exists()
    assert fetch_model(store, ref, tmp_path / "work") == local
    assert read_manifest(store, ref)["counts"] == {"steps": 3}
    if store.is_local:
        assert local == store.local_path("sft/k")
    else:
        assert local == tmp_path / "work" / "models" / ref.digest
        assert sorted(path.name for path in local.parent.iterdir()) == [f".{ref.digest}.lock", ref.digest]


def test_digest_is_of_the_files_alone(local_store, folder):
    one = publish_model(local_store, "sft", "one", folder, NONE)
    two = publish_model(local_store, "dpo", "two", folder, Provenance(config={"lr": 1e-6}))
    assert one.digest == two.digest
    (folder / "nested" / "tokenizer.json").rename(folder / "tokenizer.json")
    assert publish_model(local_store, "sft", "one", folder, NONE).digest != one.digest


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "nested/optimizer.PT", "training_args.bin", "state.pkl", "m.pth"]
)
def test_pickles_are_refused(local_store, folder, name):
    (folder / name).write_bytes(b"")
    for take in (
        lambda: publish_model(local_store, "sft", "k", folder, NONE),
        lambda: import_model(local_store, folder, "base"),
    ):
        with pytest.raises(ModelError, match="safetensors") as caught:
            take()
        assert name in str(caught.value)
    assert local_store.list() == []


def test_folders_that_are_no_models(local_store, tmp_path, folder):
    with pytest.raises(ModelError, match="does not exist"):
        import_model(local_store, tmp_path / "none", "base")
    with pytest.raises(ModelError, match="not a folder"):
        import_model(local_store, folder / "config.json", "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is empty"):
        publish_model(local_store, "sft", "k", tmp_path / "empty", NONE)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        import_model(local_store, folder, "base")
    with pytest.raises(ModelError, match="model name"):
        import_model(local_store, folder, "../up")


def test_import_is_keyed_by_content(store, folder, monkeypatch):
    ref = import_model(store, folder, "org/base-8B")
    assert (ref.step, ref.key.startswith("org--base-8B-")) == ("imported", True)
    with monkeypatch.context() as patch:
        patch.setattr("infra.store.models.publish_model", lambda *_: pytest.fail("copied again"))
        assert import_model(store, folder, "org/base-8B") == ref
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    other = import_model(store, folder, "org/base-8B")
    assert other.key != ref.key
    assert find(store, ref.step, ref.key) == ref


def test_weights_behind_links_are_copied(local_store, folder, tmp_path):
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    ref = import_model(local_store, folder, "linked")
    copied = local_store.local_path(f"{ref.step}/{ref.key}/model.safetensors")
    assert copied.read_bytes() == blob.read_bytes()
    assert not copied.is_symlink()


def test_a_damaged_model_is_not_handed_out(store, folder, tmp_path, caplog):
    ref = publish_model(store, "sft", "k", folder, NONE)
    data = bytearray(store.read_bytes("sft/k/model.safetensors"))
    data[-1] ^= 1
    store.write_bytes("sft/k/model.safetensors", bytes(data))
    assert find(store, "sft", "k") is None
    assert "model.safetensors is corrupt" in caplog.text
    with pytest.raises(BadArtifact, match=r"model\.safetensors is corrupt"):
        fetch_model(store, ref, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_a_damaged_local_copy_is_fetched_again(s3_store, folder, tmp_path, caplog):
    ref = publish_model(s3_store, "sft", "k", folder, NONE)
    local = fetch_model(s3_store, ref, tmp_path / "work")
    (local / "config.json").write_text("torn")
    with caplog.at_level(logging.WARNING):
        assert fetch_model(s3_store, ref, tmp_path / "work") == local
    assert "fetching it again" in caplog.text
    assert json.loads((local / "config.json").read_text()) == {"model_type": "llama"}


def test_shards_that_ask_at_once_fetch_one_copy_and_sweep_what_was_left(s3_store, folder, tmp_path, monkeypatch):
    ref = publish_model(s3_store, "sft", "k", folder, NONE)
    left = tmp_path / "work" / "models" / f".{ref.digest}.tmp"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("of a killed process")
    copied, copy = [], models.copy_part
    monkeypatch.setattr(models, "copy_part", lambda *given: (copied.append(given[2].path), copy(*given)))
    with ThreadPoolExecutor(4) as shards:
        found = list(shards.map(lambda _: fetch_model(s3_store, ref, tmp_path / "work"), range(4)))
    assert len(set(found)) == 1
    assert sorted(copied) == sorted(
        path.relative_to(found[0]).as_posix() for path in found[0].rglob("*") if path.is_file()
    )
    assert not left.exists()


def test_work_dir_that_cannot_be_written(s3_store, folder, tmp_path):
    ref = publish_model(s3_store, "sft", "k", folder, NONE)
    (tmp_path / "work").write_text("a file")
    with pytest.raises(StoreError, match="cannot copy model"):
        fetch_model(s3_store, ref, tmp_path / "work")


def test_publishing_again_drops_what_is_no_longer_part_of_it(store, folder):
    publish_model(store, "sft", "k", folder, NONE)
    (folder / "nested" / "tokenizer.json").unlink()
    ref = publish_model(store, "sft", "k", folder, NONE)
    assert store.list("sft/k") == ["sft/k/config.json", "sft/k/manifest.json", "sft/k/model.safetensors"]
    assert find(store, "sft", "k") == ref


def test_tensorboards_files_are_beside_a_model_and_not_in_its_digest(store, folder, tmp_path, caplog):
    """They hold times: two trainings that end with the same weights must give later steps the same keys."""
    for key in ("one", "two"):
        runs = tmp_path / key
        runs.mkdir()
        (runs / f"events.out.tfevents.{key}").write_text(f"at {key}")
        (runs / "unfinished.tmp").touch()
        publish_model(store, "sft", key, folder, NONE, runs=runs)
    one, two = (find(store, "sft", key) for key in ("one", "two"))
    assert one.digest == two.digest
    assert one.rows == 3
    assert store.read_bytes("sft/one/runs/events.out.tfevents.one") == b"at one"
    assert "ignoring" not in caplog.text
    store.delete("sft/one/runs/events.out.tfevents.one")
    assert find(store, "sft", "one") == one  # a lost curve costs no training
    assert publish_model(store, "sft", "three", folder, NONE, runs=tmp_path / "none").digest == one.digest


def test_tensorboards_files_in_a_model_folder_are_not_imported(local_store, folder):
    before = import_model(local_store, folder, "m")
    (folder / "runs" / "Nov28").mkdir(parents=True)
    (folder / "runs" / "Nov28" / "events.out.tfevents.1").touch()
    assert import_model(local_store, folder, "m") == before
