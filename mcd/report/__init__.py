"""The report of a run: one HTML page with pictures and curves."""
