"""The ways to compute a layer from its factors: exact programs, and the rule that chooses."""
