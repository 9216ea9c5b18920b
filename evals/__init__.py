"""Benchmarks as their authors define them: prompts and graders, one benchmark a file.

Pure functions; imports nothing of the project.
"""
