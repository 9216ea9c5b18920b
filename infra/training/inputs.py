"""What a trainer is given, checked before it trains: weights, the reference model, and each row of the data.

One bad row is counted and skipped. Many of them mean that the data are wrong, and stop the run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import BadInput
from infra.store.model_files import CONFIG, ModelFiles, language_part

QUERY_ID = "query_id"
"""A column that data may have; it then names the row in messages."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Number formats, as safetensors names them, that a weight can be trained from."""
PIECE = 1 << 24
"""Numbers of a tensor that are looked at at once: so much memory is needed beside the tensor."""


def check_weights(folder: Path, title: str) -> None:
    """Refuse weights that no training can start from: not whole, not finite, or in a number format of quantised models.

    The files are read tensor by tensor. Of a model on S3 only the copy in a work folder can be checked.

    Raises:
        BadInput: the tensor, its file, and what is wrong with it.
    """
    import torch
    from safetensors import safe_open

    files = ModelFiles.in_folder(folder)
    check_number_formats(title, files.number_formats())
    for file in files.weights():
        with safe_open(folder / file, framework="pt") as held:
            for name in held.keys():  # noqa: SIM118
                tensor = held.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                bad = sum(int((~torch.isfinite(piece)).sum()) for piece in tensor.flatten().split(PIECE))
                if bad:
                    raise BadInput(
                        f"{title}: {bad:,} of {tensor.numel():,} numbers of {name} in {file} are not finite (NaN or "
                        "infinite), so that everything computed with it would be NaN: fetch the model again, or take "
                        "an earlier checkpoint"
                    )


def check_number_formats(title: str, formats: Mapping[str, str]) -> None:
    """Refuse weights in a number format of quantised models, such as F8_E4M3 or I8.

    `formats`: the number format of each tensor. Buffers, such as masks, may have any.

    Raises:
        BadInput: a weight and its number format.
    """
    odd = {name: kind for name, kind in formats.items() if kind not in FLOATS and name.endswith("weight")}
    for name, kind in odd.items():
        raise BadInput(
            f"{title}: {len(odd)} weights are stored as {kind} ({name}), and such weights cannot be trained in full: "
            f"expected {', '.join(sorted(FLOATS))}. Give the model as it was before quantisation"
        )


def check_reference(policy: Path, reference: Path) -> None:
    """Refuse a reference model whose probabilities would be of other tokens than the policy's.

    Raises:
        BadInput: their tokenizers, or the sizes of their vocabularies, differ.
    """
    from infra.text.chat import load_tokenizer

    if policy.resolve() == reference.resolve():
        return
    both = f"reference model {reference} and policy {policy}"
    how = "the reference is to be the SFT model that the policy began as, with the same tokenizer"
    if difference := tokenizer_difference(load_tokenizer(policy), load_tokenizer(reference)):
        raise BadInput(f"{both} have different tokenizers ({difference}): {how}")
    sizes = [vocabulary_size(config_of(folder)) for folder in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise BadInput(f"{both} have vocabularies of {sizes[1]:,} and {sizes[0]:,} tokens ({CONFIG}): {how}")


def tokenizer_difference(one: Any, other: Any) -> str | None:
    """The first thing in which two tokenizers differ, in words; None if they make the same tokens of every text.

    The chat template is compared too, byte by byte. The padding token is not: a trainer sets one where there is none.
    """
    ids, others = one.get_vocab(), other.get_vocab()
    if ids != others:
        token = min(
            (name for name in ids.keys() | others.keys() if ids.get(name) != others.get(name)),
            key=lambda name: ids.get(name, others.get(name)),
        )
        return f"token {token!r} has the ids {ids.get(token, 'none')} and {others.get(token, 'none')}"
    marks = [{number: str(token) for number, token in each.added_tokens_decoder.items()} for each in (one, other)]
    special = [
        {name: str(token) for name, token in each.special_tokens_map.items() if name != "pad_token"}
        for each in (one, other)
    ]
    for what, pair in (
        ("special tokens", special),
        ("added tokens", marks),
        ("chat template", (one.chat_template, other.chat_template)),
        ("tokens of a sample text", [each.encode(PROBE) for each in (one, other)]),
    ):
        if pair[0] != pair[1]:
            return f"{what}: {pair[0]!r:.200} and {pair[1]!r:.200}"
    return None


PROBE = "The  answer,\n\n\tis: 12,345.67 + x² ≠ Ünïcödé 漢字 🙂 <b>don't</b>  \\boxed{42} user's\r\n end "
"""A text on which tokenizers differ if they split or normalise texts differently."""


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder."""
    return ModelFiles.in_folder(folder).read(CONFIG)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The number of tokens that a model has embeddings for, as its `config` (config.json) says; None if it does not."""
    size = language_part(config).get("vocab_size")
    return size if isinstance(size, int) else None


def check_vocabulary(title: str, size: int | None, ids: Mapping[str, int | None]) -> None:
    """Refuse token ids, by what they are, that the model has no embedding for. On a GPU they end in a CUDA assertion.

    Raises:
        BadInput: an id is not below `size`.
    """
    for what, number in ids.items():
        if size is not None and number is not None and number >= size:
            raise BadInput(
                f"{title}: {what} has the id {number:,}, but the model has embeddings for {size:,} tokens only "
                f"(vocab_size in {CONFIG}): give the model the tokenizer that it was trained with, or resize its "
                "embeddings (resize_token_embeddings)"
            )


def check_ranks(setting: str, ranks: int) -> None:
    """Refuse more training processes than this machine has GPUs, if it has any. Raises `BadInput`."""
    import torch

    if 0 < (found := torch.cuda.device_count()) < ranks:
        raise BadInput(
            f"{setting}.ranks is {ranks}, but this machine has {found} GPUs, and each training process needs one of "
            f"its own: set {setting}.ranks to {found} or less"
        )


class Rows:
    """The usable rows of Parquet files, by column; `skipped` counts the others by reason."""

    def __init__(
        self, parts: Sequence[Path], columns: Sequence[str], most_bad: float, plain: Sequence[str] = ()
    ) -> None:
        """
        Args:
            columns: those of texts.
            most_bad: the largest share of rows that may be skipped. A single one may always be.
            plain: those of numbers or flags.
        """
        self._parts, self._columns, self._most, self._plain = parts, columns, most_bad, plain
        self.skipped: Counter[str] = Counter()
        self.seen, self.first = 0, ""

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each usable row, with words that say where it is. Raises `BadInput` as `check_columns` and `check_share`."""
        for part in self._parts:
            with opened(part, self._columns, self._plain) as table:
                named = {QUERY_ID} & {*table.schema_arrow.names}
                read = list({*self._columns, *self._plain, *named})
                number = 0
                for batch in table.iter_batches(batch_size=256, columns=read):
                    for row in batch.to_pylist():
                        number, self.seen = number + 1, self.seen + 1
                        where = f"{part.name}, row {number}" + (f" (query_id {row[QUERY_ID]})" if named else "")
                        if fault := unusable(row, self._columns, self._plain):
                            self.skip(fault, where)
                        else:
                            yield where, row
        self.check_share()

    def skip(self, fault: str, where: str) -> None:
        """Count a row that cannot be trained on."""
        self.skipped[fault] += 1
        self.first = self.first or f"{where}: {fault}"

    def check_share(self) -> None:
        """Refuse data of which too large a share is skipped. Raises `BadInput` with the first such row."""
        bad = sum(self.skipped.values())
        if bad > 1 and bad > self._most * self.seen:
            counted = ", ".join(f"{count} x {fault}" for fault, count in self.skipped.most_common())
            raise BadInput(
                f"{bad} of {self.seen} rows cannot be trained on ({counted}), more than the share max_bad_share "
                f"{self._most:g}; the first is {self.first}. Correct the rows, or raise max_bad_share"
            )


def unusable(row: Mapping[str, Any], columns: Sequence[str], plain: Sequence[str] = ()) -> str | None:
    """Why a row cannot be trained on; None if it can."""
    for name in plain:
        if row[name] is None or not math.isfinite(row[name]):
            return f"{name} is {'null' if row[name] is None else 'not finite'}"
    for name in columns:
        if row[name] is None:
            return f"{name} is null"
        if not row[name].strip() and name != "response":  # a policy may have ended at once
            return f"{name} is empty"
    if "chosen" in columns and row["chosen"].strip() == row["rejected"].strip():
        return "chosen and rejected are the same"
    return None


def opened(part: Path, columns: Sequence[str], plain: Sequence[str] = ()) -> pq.ParquetFile:
    """A Parquet file that has these text columns, and these columns of numbers or flags.

    Raises:
        BadInput: it is missing, no whole Parquet file, or lacks a column or has it twice, or one is of another type.
    """
    try:
        table = pq.ParquetFile(part)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{part}: not a whole Parquet file ({str(error).splitlines()[0]}): write it again") from error
    schema = table.schema_arrow
    if missing := {*columns, *plain} - set(schema.names):
        raise BadInput(f"{part} lacks columns {sorted(missing)}; it has {schema.names}: rename them or add them")
    for name in (*columns, *plain):
        if (count := schema.names.count(name)) > 1:
            raise BadInput(f"{part} has {count} columns {name}: expected one. Rename or drop the others")
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if name in plain and not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise BadInput(f"{part}: column {name} is of type {kind}: expected numbers or booleans")
        if name in columns and not (
            pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        ):
            raise BadInput(f"{part}: column {name} is of type {kind}: expected text (string)")
    return table
