"""In-context examples as their authors write them: reading them and checking their text.

Imports no other folder of tasks.
"""
