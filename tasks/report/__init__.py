"""Pages for people: the report of a run, its reader and plots, the card of a data set.

Reads finished artifacts only.
"""
