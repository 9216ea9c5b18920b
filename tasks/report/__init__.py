"""Pages for people: the report of a run with its reader and plots, and the card of a data set.

They are made from finished artifacts only.
"""
