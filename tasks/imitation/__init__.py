"""Imitation (STILL-2): long-form thoughts that another model wrote, read, filtered and chosen for SFT."""
