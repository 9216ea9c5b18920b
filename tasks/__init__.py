"""What the steps do: plain functions over tables, and a thin step around each. Nothing here imports flows."""
