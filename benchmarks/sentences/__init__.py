"""What `python -m benchmarks.minilm` is made of."""
