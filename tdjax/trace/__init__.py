"""A model's program, and what its calls say of the layers."""
