"""The house: arrows between folders point one way, every folder has its charter, every flow is deployable."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from infra.settings import PROJECT_ROOT

# What each folder may import from, beside its own modules.
BOTTOM = {"infra/text", "infra/processes", "infra"}  # "infra": settings and errors
PURE = {"cot_formats", "evals"}
STORE = BOTTOM | {"infra/store"}
SERVING = STORE | {"infra/serving"}
STEPS = STORE | {"infra/steps"}
INFRA = SERVING | STEPS | {"infra/training"}
QUERIES = INFRA | PURE | {"tasks/queries"}
EXAMPLES = INFRA | PURE | {"tasks/examples"}
RESPONSES = QUERIES | EXAMPLES | {"tasks/responses"}
REWARDS = RESPONSES | {"tasks/rewards"}
IMITATION = RESPONSES | {"tasks/imitation"}
EVALUATION = REWARDS | {"tasks/training", "tasks/evaluation"}
MUTUAL = REWARDS | {"tasks/mutual"}
SEARCH = MUTUAL | {"tasks/search"}
REPORT = EVALUATION | SEARCH | {"tasks/report"}
TASKS = REPORT | IMITATION | {"tasks/curation", "tasks/exploration"}
OPERATIONS = INFRA | {"infra/operations", "infra/cluster"}
ALLOWED = {
    "cot_formats": set(),
    "evals": set(),
    "infra": STORE | {"infra/operations"},  # its __main__ looks after the store
    "infra/text": BOTTOM,
    "infra/processes": BOTTOM,
    "infra/store": BOTTOM,
    "infra/training": STORE,
    "infra/serving": STORE | {"infra/training"},
    "infra/steps": STORE,
    "infra/operations": INFRA,
    "infra/cluster": INFRA,
    "tasks/queries": INFRA | PURE,
    "tasks/examples": INFRA | PURE,
    "tasks/responses": QUERIES | EXAMPLES,
    "tasks/rewards": RESPONSES,
    "tasks/imitation": RESPONSES,
    "tasks/exploration": RESPONSES,
    "tasks/mutual": REWARDS,
    "tasks/search": MUTUAL,
    "tasks/training": REWARDS,
    "tasks/evaluation": REWARDS | {"tasks/training"},
    "tasks/report": EVALUATION | SEARCH,
    "tasks/curation": REWARDS | {"tasks/report"},
    "flows/stages": TASKS | OPERATIONS,
    "flows": TASKS | OPERATIONS | {"flows/stages", "nano"},
    "tasks": set(),
    "nano": TASKS,
    "smollm2": BOTTOM,
}
ONE_SUBJECT = {"nano/families": "nano"}  # a folder that belongs to the subject above it


def modules() -> dict[str, Path]:
    """The project's modules by dotted name."""
    roots = {folder.split("/")[0] for folder in ALLOWED}
    paths = [path for root in sorted(roots) for path in (PROJECT_ROOT / root).rglob("*.py")]
    return {
        ".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths
    }


MODULES = modules()


def folder_of(module: str) -> str:
    folder = MODULES[module].parent.relative_to(PROJECT_ROOT).as_posix()
    return ONE_SUBJECT.get(folder, folder)


def imported_by(path: Path) -> set[str]:
    """Dotted names of the project's modules that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_lies_below_it(folder):
    upward = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if folder_of(module) == folder
        for name in imported_by(path)
        if folder_of(name) not in ALLOWED[folder] | {folder}
    ]
    assert upward == []


def test_every_folder_of_code_is_in_the_table():
    assert {folder_of(module) for module in MODULES} == set(ALLOWED)


def test_no_two_folders_import_each_other():
    below = defaultdict(set)
    for module, path in MODULES.items():
        if path.name != "__main__.py":
            below[folder_of(module)] |= {folder_of(name) for name in imported_by(path)} - {folder_of(module)}
    both = [f"{a} and {b}" for a in below for b in below[a] if a < b and a in below[b]]
    assert both == []


def test_no_module_imports_itself_round_about():
    reached: dict[str, set[str]] = {}

    def below(module: str, above: tuple[str, ...]) -> set[str]:
        assert module not in above, " imports ".join([*above, module])
        if module not in reached:
            found = imported_by(MODULES[module]) - {module}
            reached[module] = found.union(*(below(name, (*above, module)) for name in found))
        return reached[module]

    for module in MODULES:
        below(module, ())


DOORS = {"cot_formats", "nano/families"}  # packages whose __init__ is what others import: the formats, the families


@pytest.mark.parametrize("folder", [*ALLOWED, *ONE_SUBJECT])
def test_every_folder_has_a_charter_and_no_code_in_it(folder):
    body = ast.parse((PROJECT_ROOT / folder / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(body[0], ast.Expr), f"{folder}/__init__.py has no docstring"
    assert folder in DOORS or len(body) == 1


def test_every_file_of_flows_is_deployable():
    entries = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    deployed = {entry["entrypoint"].partition(":")[0] for entry in entries}
    files = {path.relative_to(PROJECT_ROOT).as_posix() for path in (PROJECT_ROOT / "flows").glob("[a-z]*.py")}
    assert files == deployed


def test_modules_stay_short():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 400} == {}


def test_tests_mirror_the_folders():
    tests = PROJECT_ROOT / "tests"
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")}
    assert folders - {".", "bench", "faults"} <= {folder.removeprefix("./") for folder in ALLOWED}
