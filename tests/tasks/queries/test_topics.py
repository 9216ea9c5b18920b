"""The list of topics that a person edits: written, read and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput
from tasks.queries.topics import as_yaml, checked_topics, normal_name, read_topics


def topics_file(folder: Path, text: str) -> Path:
    (folder / "topics.yaml").write_text(text, encoding="utf-8")
    return folder / "topics.yaml"


def test_what_is_written_for_a_person_can_be_read_back(tmp_path):
    topics = [{"name": name, "proposals": 1} for name in ["coding", "yes", "12", "don't: this", "Übung"]]
    assert read_topics(topics_file(tmp_path, as_yaml(topics))) == ["coding", "yes", "12", "don't: this", "Übung"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- coding\n\n- Data  Analysis\n- data-analysis\n",
            "line 4: topic 'data-analysis' is a duplicate of 'Data  Analysis'",
        ),
        ("# mine\n- coding\n- ''\n", "line 3: a topic must have letters or digits, found ''"),
        ("- coding\n-\n", "line 2: a topic must be a string, found NoneType None"),
        ("- coding\n- yes\n", "line 2: a topic must be a string, found bool True: put it in quotes"),
        ("- coding\n- maths: 3\n", "line 2: a topic must be a string, found dict"),
        ("- coding\n- \\frac\n", "line 2: a topic must not contain backslashes or control characters"),
        ('- coding\n- "a\\u0007b"\n', "line 2: a topic must not contain backslashes or control characters"),
        ("- coding\n", "expected at least 2 topics, found 1"),
        ("[]", "expected at least 2 topics, found 0"),
        ("", "expected a list of topics, one '- topic' per line, found NoneType"),
        ("coding\nmaths\n", "expected a list of topics, one '- topic' per line, found str"),
        ("- [coding\n", "not YAML in UTF-8"),
    ],
)
def test_an_error_in_a_list_names_file_and_line(tmp_path, text, message):
    path = topics_file(tmp_path, text)
    with pytest.raises(BadInput) as error:
        read_topics(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.yaml does not exist"):
        read_topics(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"- \xff\n")
    with pytest.raises(BadInput, match=r"bytes\.yaml: not YAML in UTF-8"):
        read_topics(tmp_path / "bytes.yaml")


def test_an_error_in_a_list_from_elsewhere_names_the_entry():
    with pytest.raises(BadInput, match=r"^the form, row 2: topic 'A' is a duplicate of 'a' \(the form, row 1\)"):
        checked_topics(["a", "A"], "the form", ["row 1", "row 2"])
    assert checked_topics([" a\n b ", "c"], "the form", ["row 1", "row 2"]) == ["a b", "c"]


@given(st.lists(st.text(max_size=5), max_size=6))
def test_a_list_is_accepted_only_if_its_names_differ(names):
    try:
        accepted = checked_topics(names, "list", [str(n) for n, _ in enumerate(names)])
    except BadInput:
        identities = [normal_name(name) for name in names]
        odd = any("\\" in name or not " ".join(name.split()).isprintable() for name in names)
        assert odd or "" in identities or len(set(identities)) < len(identities) or len(names) < 2
    else:
        assert len({normal_name(name) for name in accepted}) == len(names) >= 2


def test_the_file_for_a_person_is_a_plain_list():
    text = as_yaml([{"name": "coding", "proposals": 3}, {"name": "maths", "proposals": 2}])
    assert yaml.safe_load(text) == ["coding", "maths"]
    assert text.startswith("# Proposed topics")
