"""References that answers are compared with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.stages.problems import check_references
from infra.errors import BadInput

TESTS = "\n".join(f"assert add({n}, 2) == {n + 2}" for n in range(20))


@pytest.mark.parametrize("reference", [TESTS, "She has 3 + 4 = 7 apples. #### 7"])
def test_only_a_verifier_of_the_users_own_compares_with_more_than_an_answer(reference: str) -> None:
    run: Any = SimpleNamespace(rows=lambda *_: iter([{"reference": reference}] * 3))
    table: Any = None
    with pytest.raises(BadInput, match=r"explore\.problems: most references are whole solutions"):
        check_references(run, "explore.problems", table, "math500")
    check_references(run, "explore.problems", table, "evals.graders:everyday")
