"""Formats and ranks of all layers, chosen together under one budget."""
