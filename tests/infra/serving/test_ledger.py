import json
import logging
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.serving.ledger import Ledger, LedgerError

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
records = st.dictionaries(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), plain | st.lists(plain, max_size=2), max_size=3),
    max_size=6,
)


def fill(path: Path, content: dict[str, dict]) -> bytes:
    with Ledger(path, "shard") as ledger:
        for name, record in content.items():
            ledger.append(name, record)
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(content=records, data=st.data())
def test_after_any_cut_a_prefix_is_left_and_the_ledger_continues(content, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.jsonl")
        whole = fill(path, content)
        with Ledger(path, "shard") as ledger:
            assert dict(ledger) == content
        end = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:end])
        with Ledger(path, "shard") as ledger:
            kept = list(ledger.items())
            assert kept == list(content.items())[: len(kept)]
            assert len(kept) == max(0, whole[:end].count(b"\n") - 1)
            for name in list(content)[len(kept) :]:
                ledger.append(name, content[name])
        assert path.read_bytes() == whole


def test_every_cut_of_one_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    whole = fill(path, {f"q{i}/{i}": {"text": "é\n" * i} for i in range(4)})
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with Ledger(path, "shard") as ledger:
            assert len(ledger) == max(0, whole[:end].count(b"\n") - 1)


def test_a_torn_line_is_logged(tmp_path, caplog):
    path = tmp_path / "ledger.jsonl"
    whole = fill(path, {"a": {}, "b": {}})
    for bad in (whole[:-3], whole[:-3] + b"\n", whole + b"\0" * 40):
        path.write_bytes(bad)
        caplog.clear()
        with caplog.at_level(logging.WARNING), Ledger(path, "shard") as ledger:
            assert "a" in ledger
        assert "torn" in caplog.text
        assert "sent again" in caplog.text
    path.write_bytes(whole)
    caplog.clear()
    Ledger(path, "shard").close()
    assert caplog.text == ""


def test_lines_are_on_disk_at_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, "shard")
    ledger.append("a", {"text": "x"})
    assert json.loads(path.read_bytes().splitlines()[1]) == {"id": "a", "record": {"text": "x"}}
    ledger.close()


def test_corruption_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = fill(path, {"a": {}, "b": {}, "c": {}}).splitlines(keepends=True)
    for bad in (b"{torn\n", b"\n", b"[]\n", b'{"id": 5, "record": {}}\n', b"\xff\n"):
        damaged = b"".join([*lines[:2], bad, *lines[3:]])
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match="corrupt at line 3"):
            Ledger(path, "shard")
        assert path.read_bytes() == damaged


def test_another_shards_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    whole = fill(path, {"a": {}})
    with pytest.raises(LedgerError, match="belongs to shard 'shard', not to 'other'"):
        Ledger(path, "other")
    with pytest.raises(LedgerError, match="belongs to shard 'shard', not to 'ledger'"):
        Ledger(path)
    assert path.read_bytes() == whole


def test_the_key_is_the_files_stem_by_default(tmp_path):
    Ledger(tmp_path / "one.jsonl").close()
    Ledger(tmp_path / "one.jsonl").close()
    (tmp_path / "one.jsonl").rename(tmp_path / "two.jsonl")
    with pytest.raises(LedgerError, match="belongs to shard 'one'"):
        Ledger(tmp_path / "two.jsonl")


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b"{}\n", b'{"id": "a", "record": {}}\n', b"a\nb\n"])
def test_a_file_that_is_not_a_ledger_is_not_changed(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="is not a ledger"):
        Ledger(path)
    assert path.read_bytes() == content


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, "shard"), pytest.raises(LedgerError, match="in use by another process"):
        Ledger(path, "shard")
    Ledger(path, "shard").close()


def test_what_cannot_be_appended(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", "shard")
    ledger.append("a", {})
    with pytest.raises(ValueError, match="already finished"):
        ledger.append("a", {})
    with pytest.raises(ValueError, match="JSON"):
        ledger.append("b", {"x": float("nan")})
    ledger.append("b", {"x": 1})
    ledger.close()
    ledger.close()
    with pytest.raises(ValueError, match="is closed"):
        ledger.append("c", {})
    with Ledger(tmp_path / "ledger.jsonl", "shard") as again:
        assert dict(again) == {"a": {}, "b": {"x": 1}}


def test_records_stay_on_disk_and_can_be_read_between_two_writes(tmp_path):
    record = {"text": "é" * 20_000}
    with Ledger(tmp_path / "ledger.jsonl", "shard") as ledger:
        tracemalloc.start()
        for i in range(200):
            ledger.append(f"q{i}", record)
            assert ledger[f"q{i // 2}"] == record
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 200_000  # the texts are 8 MB
        with pytest.raises(KeyError):
            ledger["q200"]


def test_a_failed_write_leaves_no_half_line(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from infra.serving.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), 'shard'); ledger.append('a', {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "try:\n    ledger.append('big', {'x': 'y' * 1000})\nexcept OSError as error: print('caught', error)\n"
        "ledger.append('b', {}); ledger.close()"
    )
    path = tmp_path / "ledger.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "caught [Errno 27] File too large (make room in BOLT_WORK_DIR and run again" in done.stdout
    assert str(path) in done.stdout
    with Ledger(path, "shard") as ledger:
        assert list(ledger) == ["a", "b"]


def test_a_killed_process_loses_at_most_its_last_request(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from infra.serving.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), 'shard')\n"
        "for i in range(100): ledger.append(str(i), {'i': i})\n"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "ledger.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    with Ledger(path, "shard") as ledger:
        assert len(ledger) == 100
    assert os.path.getsize(path) > 0
