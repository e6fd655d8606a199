"""The experiment on l_q compressibility: how far networks can be pruned, and what predicts it."""
