"""Search over the steps of a solution, guided by a reward model (STILL-1)."""
