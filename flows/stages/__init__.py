"""What several flows share: the run itself, mining, sampling, problems, judged benchmarks, the summary.

No flow is defined here, and none is imported.
"""
