"""The files of a run, written so that a kill loses nothing."""
