"""What the reports of all experiments are made of."""
