"""Bad rows and bad models given to a trainer: found before it trains, named with file and row, and how to fix them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny import PROMPT, make_model, make_tokenizer

from infra.errors import BadInput
from infra.processes.torchrun import TrainerError, launch
from infra.training.config import DpoConfig, SftConfig, SftRecipe, trained_path

SFT = {"prompt": [PROMPT] * 8, "completion": ["w1 w2"] * 8}
DPO = {"prompt": [PROMPT] * 8, "chosen": ["w1 w2"] * 8, "rejected": ["w3"] * 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def with_row(rows: dict[str, list[Any]], number: int, **changes: Any) -> dict[str, list[Any]]:
    """The columns, with some fields of one row changed."""
    return {name: [*each[:number], changes.get(name, each[number]), *each[number + 1 :]] for name, each in rows.items()}


def config(model: Path, folder: Path, columns: Any, **changes: Any) -> SftConfig | DpoConfig:
    data = folder / "part-00000.parquet"
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), data)
    settings = {"model": model, "data": (data,), "output": folder / "out", "batch": 4, "micro_batch": 2}
    settings |= {"max_length": 64} | changes
    return DpoConfig(**settings, reference=model) if "chosen" in pq.read_schema(data).names else SftConfig(**settings)


def written(made: SftConfig | DpoConfig) -> dict[str, Any]:
    """What the trainer makes of the data: how many rows it dropped and skipped, and those that it kept."""
    from infra.training import dpo, sft
    from infra.training import trainer as training

    module = dpo if isinstance(made, DpoConfig) else sft
    path = made.output.with_name("tokens.arrow")
    left_out = training._write_tokens(made, module.converter(training.tokenizer_for(made)), (), path)
    return {**left_out, "kept": pa.ipc.open_stream(str(path)).read_all().num_rows}


# ---- one bad row


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (with_row(SFT, 3, completion=""), "completion is empty"),
        (with_row(SFT, 3, completion=" \n"), "completion is empty"),
        (with_row(SFT, 3, completion=None), "completion is null"),
        (with_row(SFT, 3, prompt=""), "prompt is empty"),
        (with_row(SFT, 3, prompt=None), "prompt is null"),
        (with_row(SFT, 3, completion="w1 <eos> w2"), "the end token stands in the middle of a completion"),
        (with_row(DPO, 3, chosen=""), "chosen is empty"),
        (with_row(DPO, 3, rejected=" "), "rejected is empty"),
        (with_row(DPO, 3, rejected=None), "rejected is null"),
        (with_row(DPO, 3, rejected="w1 w2 "), "chosen and rejected are the same"),
        (with_row(SFT, 3, completion="<eos>"), "completion is empty but for the end token"),
        (with_row(DPO, 3, rejected="<eos>"), "rejected is empty but for the end token"),
        (with_row(DPO, 3, rejected="w1 w2 <eos>"), "chosen and rejected are the same tokens"),
        (with_row(DPO, 3, rejected="w1   w2"), "chosen and rejected are the same tokens"),
        (with_row(DPO, 3, chosen="new", rejected="other"), "chosen and rejected are the same tokens"),  # both unknown
        (with_row(DPO, 3, chosen="<eos> w1"), "the end token stands in the middle of a completion"),
    ],
)
def test_one_bad_row_is_counted_and_skipped(
    model: Path, tmp_path: Path, rows: dict[str, list[Any]], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert written(config(model, tmp_path, rows)) == {"dropped": 0, "skipped": {fault: 1}, "kept": 7}
    assert f"1 of 8 rows skipped: {fault}; the first bad row: part-00000.parquet, row 4" in caplog.text


def test_many_bad_rows_stop_the_run_and_the_first_is_named(model: Path, tmp_path: Path) -> None:
    rows = with_row(with_row(SFT, 2, completion=""), 5, completion=None)
    rows["query_id"] = list("abcdefgh")
    with pytest.raises(
        BadInput,
        match=r"2 of 8 rows cannot be trained on \(1 x completion is empty, 1 x completion is null\), more than the "
        r"share max_bad_share 0\.1; the first is part-00000\.parquet, row 3 \(query_id c\): completion is empty",
    ):
        written(config(model, tmp_path, rows))
    assert written(config(model, tmp_path, rows, max_bad_share=0.25))["kept"] == 6


def test_an_end_token_at_the_end_is_no_fault(model: Path, tmp_path: Path) -> None:
    assert written(config(model, tmp_path, with_row(SFT, 3, completion="w1 <eos>")))["skipped"] == {}


# ---- no room


@pytest.mark.parametrize("rows", [with_row(SFT, 6, completion="w1 " * 80), with_row(DPO, 6, rejected="w1 " * 80)])
def test_a_row_without_room_is_named_or_dropped(
    model: Path, tmp_path: Path, rows: dict[str, list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    rows = {**rows, "query_id": [f"q{number}" for number in range(8)]}
    with pytest.raises(
        BadInput, match=r"1 of 8 rows exceed max_length 64; the longest has 87 tokens .*row 7 \(query_id q6\)"
    ):
        written(config(model, tmp_path, rows))
    assert written(config(model, tmp_path, rows, overlong="drop")) == {"dropped": 1, "skipped": {}, "kept": 7}
    assert "1 of 8 rows dropped: longer than max_length 64" in caplog.text


def test_if_no_row_fits_nothing_is_trained(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no rows to train on in part-00000\.parquet: of 8, 8 exceed max_length 5"):
        written(config(model, tmp_path, SFT, overlong="drop", max_length=5))  # less than the prompt alone


# ---- files


def test_zero_rows(model: Path, tmp_path: Path) -> None:
    empty = pa.table({"prompt": pa.array([], pa.string()), "completion": pa.array([], pa.string())})
    with pytest.raises(BadInput, match=r"no rows to train on in part-00000\.parquet: of 0.*Correct the rows"):
        written(config(model, tmp_path, empty))


def test_a_part_that_lacks_a_column(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"part-00000\.parquet lacks columns \['completion'\]; it has \['prompt', 'text'\]"
    ):
        written(config(model, tmp_path, {"prompt": [PROMPT], "text": ["w1"]}))


def test_a_column_that_is_there_twice(model: Path, tmp_path: Path) -> None:
    table = pa.table(SFT).append_column("prompt", pa.array(["w1"] * 8))
    with pytest.raises(BadInput, match=r"part-00000\.parquet has 2 columns prompt: expected one"):
        written(config(model, tmp_path, table))


def test_a_column_of_another_type(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"column completion is of type list.*: expected text"):
        written(config(model, tmp_path, {"prompt": [PROMPT], "completion": [["w1"]]}))


def test_half_a_parquet_file(model: Path, tmp_path: Path) -> None:
    made = config(model, tmp_path, SFT)
    made.data[0].write_bytes(made.data[0].read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"part-00000\.parquet: not a whole Parquet file"):
        written(made)


# ---- the model


def test_a_token_without_an_embedding_is_found_before_the_gpu_asserts(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    told = json.loads((model / "config.json").read_text()) | {"vocab_size": 11}
    (model / "config.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=r"row 1: its largest token has the id 13, but .* embeddings for 11 tokens only"):
        written(config(model, tmp_path, SFT))  # w3 of the prompt


def test_a_padding_token_without_an_embedding(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # beyond the 96 words
    tokenizer.save_pretrained(model)
    with pytest.raises(BadInput, match=r"padding token '\[PAD\]' has the id \d+, but the model has embeddings for 96"):
        written(config(model, tmp_path, SFT))


def test_without_a_padding_token_the_end_token_pads(tmp_path: Path) -> None:
    from infra.training.trainer import tokenizer_for

    model = make_model(tmp_path / "m")
    told = json.loads((model / "tokenizer_config.json").read_text())
    del told["pad_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    assert tokenizer_for(config(model, tmp_path, SFT)).pad_token_id == 2  # <eos>


def broken(model: Path, value: float) -> Path:
    held = load_file(model / "model.safetensors")
    held["model.layers.1.mlp.up_proj.weight"][0, :2] = value
    save_file(held, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_model_with_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    from infra.training.trainer import check_models

    model = broken(make_model(tmp_path / "m"), value)
    with pytest.raises(
        BadInput,
        match=r"2 of 8,192 numbers of model\.layers\.1\.mlp\.up_proj\.weight in model\.safetensors are not finite",
    ):
        check_models(config(model, tmp_path, SFT))


def test_a_reference_model_with_weights_that_are_not_finite(model: Path, tmp_path: Path) -> None:
    from infra.training.trainer import check_models

    reference = broken(make_model(tmp_path / "m"), float("nan"))
    with pytest.raises(BadInput, match=r"reference model .* are not finite"):
        check_models(config(model, tmp_path, DPO).model_copy(update={"reference": reference}))


def test_a_model_that_lacks_a_tensor(tmp_path: Path) -> None:
    from infra.training.trainer import load_model

    model = make_model(tmp_path / "m")
    held = load_file(model / "model.safetensors")
    del held["model.norm.weight"]
    save_file(held, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks 1 tensors, such as model\.norm\.weight"):
        load_model(model, config(model, tmp_path, SFT))


def test_a_reference_model_with_another_tokenizer(model: Path, tmp_path: Path) -> None:
    from infra.training.inputs import check_reference

    same = make_model(tmp_path / "same", seed=1)
    check_reference(model, same)
    other = make_model(tmp_path / "other")
    make_tokenizer(extra=["<|more|>"]).save_pretrained(other)
    with pytest.raises(BadInput, match=r"have different tokenizers \(token '<\|more\|>' has the ids none and \d+\)"):
        check_reference(model, other)
    template = (same / "chat_template.jinja").read_text()
    (same / "chat_template.jinja").write_text(template.replace("<|assistant|>", "<|user|>"))
    with pytest.raises(BadInput, match=r"have different tokenizers \(chat template"):
        check_reference(model, same)


def test_a_reference_model_with_another_vocabulary(model: Path, tmp_path: Path) -> None:
    from infra.training.inputs import check_reference

    other = make_model(tmp_path / "m")
    told = json.loads((other / "config.json").read_text()) | {"vocab_size": 128}
    (other / "config.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match="vocabularies of 128 and 96 tokens"):
        check_reference(model, other)


# ---- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "greater than 0"),
        ({"learning_rate": float("inf")}, "finite number"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"epochs": float("inf")}, "finite number"),
        ({"epochs": 0}, "greater than 0"),
        ({"epochs": 1e300}, "less than or equal to 1000"),
        ({"seed": 2**32}, "less than 4294967296"),
        ({"warmup_ratio": 1}, "less than 1"),
        ({"schedule": "cosinus"}, "'cosine', 'linear'"),
        ({"schedule": "reduce_lr_on_plateau"}, "'cosine', 'linear'"),
        ({"max_length": 1}, "greater than 1"),
        ({"batch": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_train(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SftRecipe(**changes)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "ranks", "message"),
    [
        (128, 1, 3, "batch 129 would do"),
        (8, 8, 2, "micro_batch 4 or batch 16 would do"),  # a micro-batch is larger than a rank's part of the batch
        (2, 1, 8, "batch 8 would do"),
    ],
)
def test_ranks_that_the_batch_does_not_divide_into(batch: int, micro_batch: int, ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=rf"not a multiple of micro_batch .* {message}"):
        SftRecipe(batch=batch, micro_batch=micro_batch).accumulation(ranks)


@pytest.mark.parametrize(
    ("rows", "epochs", "ratio", "steps", "warmup"),
    [(8, 1, 0.1, 2, 1), (1, 1, 0.1, 1, 0), (1, 0.01, 0.1, 1, 0), (9, 4, 0.1, 12, 2), (8, 1, 0.99, 2, 1)],
)
def test_some_step_has_the_peak_learning_rate(rows: int, epochs: float, ratio: float, steps: int, warmup: int) -> None:
    """Transformers would give a run of one step one step of warm-up, whose learning rate is 0."""
    recipe = SftRecipe(batch=4, epochs=epochs, warmup_ratio=ratio)
    assert (recipe.steps(rows), recipe.warmup_steps(rows)) == (steps, warmup)


# ---- real trainers


@pytest.mark.slow
def test_one_row_is_trained_on_and_changes_the_model(model: Path, tmp_path: Path) -> None:
    sft = config(model, tmp_path, {name: each[:1] for name, each in SFT.items()}, epochs=1, learning_rate=1e-3)
    launch("infra.training.sft", sft, ranks=2, log_path=tmp_path / "train.log", timeout_s=300)
    report = json.loads(trained_path(sft.output).read_text())
    assert (report["samples"], report["steps"]) == (1, 1)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, sft.output))
    assert any(not before[name].equal(after[name]) for name in before)


@pytest.mark.slow
def test_a_bad_model_ends_the_trainer_before_it_trains(tmp_path: Path) -> None:
    sft = config(broken(make_model(tmp_path / "m"), float("nan")), tmp_path, SFT)
    with pytest.raises(TrainerError, match=r"cause: .*BadInput: model .* are not finite"):
        launch("infra.training.sft", sft, ranks=2, log_path=tmp_path / "train.log", timeout_s=300)
    assert not trained_path(sft.output).exists()
