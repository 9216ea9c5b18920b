import ast
import gc
import os
import re
from pathlib import Path

import pytest

from infra.steps import keys
from infra.steps.keys import KEY_LENGTH, cache_key, code_fingerprint
from infra.store.manifest import Ref

FILES = {
    "tasks/__init__.py": "",
    "tasks/step.py": (
        "import json\nfrom infra.helper import help\nfrom . import sibling\nfrom cot_formats import bolt\n"
        "def run():\n    from evals.math.grade import grade\n    return 'infra.trainer'\n"
    ),
    "tasks/sibling.py": "import infra.deep.leaf as leaf\n",
    "tasks/stranger.py": "x = 1\n",
    "infra/__init__.py": "",
    "infra/helper.py": "from infra.deep import leaf\n\ndef help(): ...\n",
    "infra/trainer.py": "",
    "infra/stranger.py": "from tasks import step\n",
    "infra/deep/__init__.py": "from ..more import thing\n",
    "infra/deep/leaf.py": "from ..cycle import x\n",
    "infra/deep/stranger.py": "",
    "infra/more.py": "thing = 1\n",
    "infra/cycle.py": "import tasks.step\n",
    "cot_formats/__init__.py": "",
    "cot_formats/bolt.py": "TEXT = 'prompt'\n",
    "cot_formats/other.py": "",
    "evals/__init__.py": "",
    "evals/math/__init__.py": "",
    "evals/math/grade.py": "grade = 1\n",
    "json.py": "not reached, not even Python",
}
REACHED = {
    "tasks/__init__.py",
    "tasks/step.py",
    "tasks/sibling.py",
    "infra/__init__.py",
    "infra/helper.py",
    "infra/trainer.py",
    "infra/deep/__init__.py",
    "infra/deep/leaf.py",
    "infra/more.py",
    "infra/cycle.py",
    "cot_formats/__init__.py",
    "cot_formats/bolt.py",
    "evals/__init__.py",
    "evals/math/__init__.py",
    "evals/math/grade.py",
}


def plant(root: Path) -> Path:
    for name, source in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


@pytest.fixture
def root(tmp_path):
    return plant(tmp_path / "project")


def ref(digest="d" * 64, uri="s3://a/step/k") -> Ref:
    return Ref(kind="table", step="step", key="k", uri=uri, digest=digest, rows=1)


def key(root, step="filter", module="tasks.step", **changes) -> str:
    given = {
        "config": {"percentile": 30, "sampling": {"temperature": 1.0, "stop": ["a", "b"]}},
        "inputs": {"responses": ref()},
        "ingredients": {"model": "llama", "revision": "abc", "chat_template": "111", "prompt": "Think."},
    }
    return cache_key(step, code=code_fingerprint(module, root), **(given | changes))


def test_a_key_is_short_and_stable(root, tmp_path):
    one = key(root)
    assert re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", one)
    assert key(root) == one
    assert key(plant(tmp_path / "elsewhere")) == one


def test_code_that_has_changed_since_the_process_began_has_no_key(root, monkeypatch):
    """The process runs the code that it imported, so a key of the new code would be wrong for its results."""
    monkeypatch.setattr(keys, "PROJECT_ROOT", root)
    keys._at_start.cache_clear()
    try:
        before = key(root)
        (root / "tasks" / "stranger.py").write_text("x = 2\n")
        assert key(root) == before  # not reached by this step
        (root / "infra" / "more.py").write_text("thing = 2\n")
        with pytest.raises(keys.CodeChangedError, match=r"infra/more\.py was changed .* start the run again"):
            key(root)
    finally:
        keys._at_start.cache_clear()


def test_a_parse_elsewhere_in_the_process_does_not_disturb_a_key(root):
    """As by another thread: the collector runs in the middle of a parse and starts a parse of its own."""
    source, disturbed = "x = [1, (2, [3])]\n" * 500, []

    def disturb(phase: str, _: object) -> None:
        if phase == "start" and len(disturbed) < 3:
            disturbed.append(ast.parse("y = [[1]]"))

    threshold = gc.get_threshold()
    gc.callbacks.append(disturb)
    gc.set_threshold(50)
    try:
        tree = keys._tree(source, "made")
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(disturb)
    assert len(disturbed) == 3
    assert len(tree.body) == 500


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "other"},
        {"module": "tasks.sibling"},
        {"config": {"percentile": 31, "sampling": {"temperature": 1.0, "stop": ["a", "b"]}}},
        {"config": {"percentile": 30, "sampling": {"temperature": 0.9, "stop": ["a", "b"]}}},
        {"config": {"percentile": 30, "sampling": {"temperature": 1.0, "stop": ["b", "a"]}}},
        {"config": {"percentile": "30", "sampling": {"temperature": 1.0, "stop": ["a", "b"]}}},
        {"inputs": {"responses": ref(digest="e" * 64)}},
        {"inputs": {"scores": ref()}},
        {"inputs": {}},
        {"ingredients": {"model": "mistral", "revision": "abc", "chat_template": "111", "prompt": "Think."}},
        {"ingredients": {"model": "llama", "revision": "abd", "chat_template": "111", "prompt": "Think."}},
        {"ingredients": {"model": "llama", "revision": "abc", "chat_template": "112", "prompt": "Think."}},
        {"ingredients": {"model": "llama", "revision": "abc", "chat_template": "111", "prompt": "Think!"}},
        {"ingredients": {}},
    ],
)
def test_each_ingredient_changes_the_key(root, changes):
    assert key(root, **changes) != key(root)


def test_what_does_not_matter_does_not_change_the_key(root):
    reordered = {"sampling": {"stop": ("a", "b"), "temperature": 1.0}, "percentile": 30}
    assert key(root, config=reordered) == key(root)
    assert key(root, inputs={"responses": ref(uri="/moved/step/k")}) == key(root)


@pytest.mark.parametrize("name", sorted(REACHED))
def test_source_that_is_reached_changes_the_key(root, name):
    before = key(root)
    path = root / name
    path.write_text(path.read_text() + "changed = 1\n")
    assert key(root) != before


@pytest.mark.parametrize("name", sorted(set(FILES) - REACHED))
def test_source_of_other_modules_does_not(root, name):
    before = key(root)
    (root / name).write_text("changed = 1\n")
    assert key(root) == before


def test_new_files_and_times_do_not(root):
    before = key(root)
    (root / "tasks" / "new.py").write_text("x = 1")
    os.utime(root / "tasks" / "step.py", (0, 0))
    (root / "tasks" / "step.py").write_bytes((root / "tasks" / "step.py").read_bytes().replace(b"\n", b"\r\n"))
    assert key(root) == before


def test_a_module_that_becomes_reachable_changes_the_key(root):
    (root / "tasks" / "step.py").write_text("from infra import helper, gone\n")
    before = key(root)
    (root / "infra" / "gone.py").write_text("")
    assert key(root) != before


def test_unknown_module(root):
    for name in ("tasks.none", "os", "json"):
        with pytest.raises(ValueError, match=f"no project module {name}"):
            code_fingerprint(name, root)


def test_the_project_itself():
    assert code_fingerprint("infra.store.tables") != code_fingerprint("infra.steps.keys")
    assert len(code_fingerprint("infra.store.lineage")) == 64


def test_ingredients_are_strings(root):
    with pytest.raises(TypeError, match="ingredient revision must be a string, not NoneType"):
        key(root, ingredients={"revision": None})
