"""Write the results of studies into docs/study.md: `python docs/study.py [STUDY.json ...]`.

The cells of each study.json are added to docs/study.json, in place of earlier ones of the same names, so that a study
can be run in parts. Then the tables and plots are written anew from docs/study.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.settings import PROJECT_ROOT
from infra.text.markdown import with_part
from tasks.report.study import by_steps_plot, study_page, study_plot


def merged(studies: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The cells of all studies; a later one's replace those of the same names."""
    whole: dict[str, Any] = {"arms": {}, "rows": [], "cells": {}, "failed": {}}
    for study in studies:
        new = {*study["cells"], *study["failed"]}
        whole["arms"] |= study["arms"]
        whole["rows"] = [row for row in whole["rows"] if f"{row['arm']}/{row['seed']}" not in new] + study["rows"]
        for kind in ("cells", "failed"):
            whole[kind] = {cell: held for cell, held in whole[kind].items() if cell not in new} | study[kind]
    order = list(whole["arms"])
    whole["rows"].sort(key=lambda row: (order.index(row["arm"]), row["seed"]))  # a cell's stages stay in order
    return whole


def main() -> None:
    """Add the given studies to docs/study.json, and write the tables and plots."""
    held = PROJECT_ROOT / "docs" / "study.json"
    paths = [held] if held.exists() else []
    study = merged(json.loads(path.read_text()) for path in [*paths, *map(Path, sys.argv[1:])])
    held.write_text(json.dumps(study, indent=1) + "\n")
    (held.parent / "study.svg").write_bytes(study_plot(study["rows"]))
    if (plot := by_steps_plot(study["rows"], next(iter(study["arms"])))) is not None:
        (held.parent / "by-steps.svg").write_bytes(plot)
    page = held.parent / "study.md"
    page.write_text(with_part(page.read_text(), "study", study_page(study)))


if __name__ == "__main__":
    main()
