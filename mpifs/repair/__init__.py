"""Verify and repair: every invariant of a volume checked, and what can be saved is saved."""
