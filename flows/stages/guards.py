"""The guards between the steps of stage 3: every policy is compared with pi_0 before more is spent on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefect.artifacts import create_table_artifact

from flows.stages.run import Run
from infra.errors import GuardError
from infra.store.manifest import Ref
from infra.store.tables import read_rows
from infra.text.markdown import as_text
from infra.training.limits import TrainingGuards
from tasks.report.guards import guard_rows
from tasks.rewards.drift import Guards, measure_drift

DESCRIPTION = "Drift of this policy from pi_0; a figure over its limit stops the run"


@dataclass
class Watch:
    """What is known of each policy of stage 3, by the number of iterations that trained it: pi_0, the SFT model, is 0.

    Attributes:
        guards: limits of the drift.
        online: limits of the policies' trainings.
        sft: limits of pi_0's training, if it is a part of this flow.
        responses: what an iteration sampled from the policy.
        scores: the scores of these.
        grades: the policy's sampled answers to held-out problems.
        rows: the rows of all tables so far, each with its `policy`.
    """

    run: Run
    guards: Guards
    online: TrainingGuards
    sft: TrainingGuards | None = None
    responses: dict[int, list[Ref]] = field(default_factory=dict)
    scores: dict[int, Ref] = field(default_factory=dict)
    grades: dict[int, Ref] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, number: int, policy: Ref) -> None:
        """Make the table `guards-NUMBER` of a policy, and show it in Prefect's UI."""
        name = f"guards-{number}"
        table = self.run.do(
            measure_drift,
            name,
            guards=self.guards,
            training=self.online if number else self.sft,
            policy=policy,
            responses=self.responses.get(number, []),
            scores=self.scores.get(number),
            grades=self.grades.get(number),
            first_responses=self.responses.get(0, []),
            first_scores=self.scores.get(0),
            first_grades=self.grades.get(0),
        )
        if self.run.dry:
            return
        rows = [{"policy": number, **row} for row in read_rows(self.run.store, table)]
        self.rows += rows
        if rows:
            cells = [{column: as_text(cell) for column, cell in row.items()} for row in guard_rows(rows)]
            create_table_artifact(cells, key=name, description=DESCRIPTION)

    def stop_if_tripped(self) -> None:
        """Raise `GuardError` if a policy exceeds a limit. Its table is in the store by then."""
        if tripped := [row for row in self.rows if row["tripped"]]:
            raise GuardError(
                f"{'; '.join(map(said, tripped))}. The table guards-{tripped[0]['policy']} has all figures, and "
                "what was done is kept. docs/operations.md says what to do; to go on all the same, raise the limit"
            )


def said(row: dict[str, Any]) -> str:
    """Which guard a policy tripped, with its figures, limit and setting."""
    policy = f"the policy after iteration {row['policy']}" if row["policy"] else "pi_0, the SFT model"
    versus = "" if row["baseline"] is None or not row["policy"] else f" (pi_0: {row['baseline']:.4g})"
    figure = "" if row["compared"] == row["value"] else f", by which it counts as {row['compared']:.4g}"
    return (
        f"{policy}: {row['guard']} is {row['value']:.4g}{versus}{figure}; limit {row['limit']:g}, "
        f"config.{row['setting']}"
    )
