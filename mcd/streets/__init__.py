"""Synthetic streets with moving vehicles: geometry, rendering, and the data set that they make."""
