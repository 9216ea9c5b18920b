"""The six families of verifiable problems, a topic each: sample, derive (with a writer's habits), perturb."""

from nano.families import arithmetic, calendar, congruence, ordering, pair_sum, tracking

FAMILIES = {
    "arithmetic": arithmetic,
    "calendar": calendar,
    "tracking": tracking,
    "ordering": ordering,
    "pair_sum": pair_sum,
    "congruence": congruence,
}
LEVELS = (0, 1, 2, 3)
