"""What users hand to the library, and what it calls of theirs: checked and answered in words."""
