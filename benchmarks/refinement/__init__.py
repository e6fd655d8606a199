"""What `python -m benchmarks.refine` is made of."""
