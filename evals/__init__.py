"""Benchmarks as their authors define them: prompts and graders, one file per benchmark.

Pure functions; nothing else of the project is imported.
"""
