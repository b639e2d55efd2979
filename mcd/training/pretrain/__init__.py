"""Pre-training on rendered roads: how the start that ships with mcd is made."""
