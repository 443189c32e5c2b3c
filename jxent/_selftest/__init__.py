"""The code that `python -m jxent` runs: training on iris, and the numerics report."""
