"""What benchmarks of transformers share: peers, tdjax, the table; two small networks."""
