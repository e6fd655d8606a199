"""The experiment on one budget for a whole network: strategies, budgets, norms."""
