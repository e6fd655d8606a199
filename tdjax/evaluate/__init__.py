"""Errors of approximations, and many candidates at once."""
