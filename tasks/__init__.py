"""The steps: plain functions over tables, each wrapped as a cached task. Nothing here imports flows."""
