"""Factors fitted until the small network answers as the large one did, without labels."""
