"""Procedures: what the phases of a run are, from what the phases before gave."""
