"""Sparsity of trained networks: l_q compressibility, and pruning that adapts to it."""
