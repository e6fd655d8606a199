"""The experiment on decompositions that see the data: which norm keeps the most accuracy."""
