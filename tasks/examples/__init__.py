"""In-context examples as their author writes them: read and checked by their text. Imports no other folder of tasks."""
