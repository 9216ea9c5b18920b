"""Turns a function into a cached task: its cache key, the digests of its inputs, its progress."""
