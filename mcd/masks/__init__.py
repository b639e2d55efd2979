"""Masks of objects: morphology, files, and where they come from."""
