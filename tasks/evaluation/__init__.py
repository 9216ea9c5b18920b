"""Benchmarks as steps: problems, answers, grades, verdicts, figures. One file per judged benchmark.

The graders themselves are in `evals`.
"""
