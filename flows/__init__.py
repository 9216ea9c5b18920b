"""A flow a file, each of them deployable; it reads like the method section of its paper.

What several flows share is in `flows.stages`. A worker must load a flow in about a second: no torch, no vLLM here.
"""
