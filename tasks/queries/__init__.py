"""Query mining: sources, cleaning, decontamination, difficulty, topics, the draw.

Imports no other folder of tasks.
"""
