"""The guards of a run as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def guard_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of all tables `guards`, each with the number of its `policy`, as text; missing figures are empty."""
    return [
        {
            "policy": f"iteration {row['policy']}" if row["policy"] else "pi_0",
            "guard": row["guard"],
            "value": shown(row["value"]),
            "pi_0": shown(row["baseline"]),
            "compared": shown(row["compared"]),
            "limit": shown(row["limit"]),
            "tripped": "yes" if row["tripped"] else "no",
        }
        for row in rows
    ]


def shown(figure: float | None) -> str:
    """A figure with three significant digits."""
    return "" if figure is None else f"{figure:.3g}"
