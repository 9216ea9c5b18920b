"""Benchmarks as steps: problems, answers, grades, verdicts, figures. One judged benchmark a file.

The graders themselves are in `evals`.
"""
