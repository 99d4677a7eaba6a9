"""Planting damage in a volume at rest, and judging what a verify run said of it."""
