"""A function as a cached task: its key, the digests of its inputs, its progress."""
