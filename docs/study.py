"""Write the results of studies into a page: `python docs/study.py docs/study.md [STUDY.json ...]`.

The cells of each study.json are added to the JSON file beside the page, in place of earlier ones of the same names, so
that a study can be run in parts. Then the page's tables and its plots are written anew from that file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.text.markdown import with_part
from tasks.report.mutual_study import searches_plot
from tasks.report.study import by_steps_plot, study_page, study_plot


def merged(studies: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The cells of all studies; a later one's replace those of the same names, and those of an arm whose settings
    have changed."""
    whole: dict[str, Any] = {"arms": {}, "rows": [], "cells": {}, "failed": {}, "searches": [], "judges": []}
    for study in studies:
        changed = [arm for arm, own in study["arms"].items() if whole["arms"].get(arm, own) != own]
        old = {cell for kind in ("cells", "failed") for cell in whole[kind] if cell.rpartition("/")[0] in changed}
        new = {*study["cells"], *study["failed"], *old}
        whole["arms"] |= study["arms"]
        for kind in ("rows", "searches", "judges"):
            kept = [row for row in whole[kind] if f"{row['arm']}/{row['seed']}" not in new]
            whole[kind] = kept + study.get(kind, [])
        for kind in ("cells", "failed"):
            whole[kind] = {cell: held for cell, held in whole[kind].items() if cell not in new} | study[kind]
    order = list(whole["arms"])
    for kind in ("rows", "searches", "judges"):
        whole[kind].sort(key=lambda row: (order.index(row["arm"]), row["seed"]))  # a cell's stages stay in order
    return whole


def main() -> None:
    """Add the given studies to the page's JSON file, and write its tables and plots."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python docs/study.py PAGE.md [STUDY.json ...]")
    page, *added = map(Path, sys.argv[1:])
    if missing := [each for each in (page, *added) if not each.is_file()]:
        sys.exit(f"{missing[0]}: there is no such file")
    try:
        text = with_part(page.read_text(), "study", "")  # before anything is written
    except ValueError as error:
        sys.exit(f"{page}: {error}")
    held = page.with_suffix(".json")
    study = merged(json.loads(path.read_text()) for path in ([held] if held.exists() else []) + added)
    held.write_text(json.dumps(study, indent=1) + "\n")
    page.with_suffix(".svg").write_bytes(study_plot(study["rows"]))
    if (plot := by_steps_plot(study["rows"], next(iter(study["arms"])))) is not None:
        page.with_name(f"{page.stem}-by-steps.svg").write_bytes(plot)
    if (plot := searches_plot(study["searches"], next(iter(study["arms"])))) is not None:
        page.with_name(f"{page.stem}-searches.svg").write_bytes(plot)
    page.write_text(with_part(text, "study", study_page(study)))


if __name__ == "__main__":
    main()
