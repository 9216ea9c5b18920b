"""What the steps stand on. Imports nothing of tasks and flows."""
