"""One deployable flow per file, which reads like the method section of its paper.

What several flows share is in `flows.stages`. A worker must load a flow in about a second: no torch, no vLLM here.
"""
