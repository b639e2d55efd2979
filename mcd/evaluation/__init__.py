"""Figures of depth, of moving objects and of what was discovered."""
