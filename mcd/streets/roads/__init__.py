"""Roads of every kind for pre-training: many cameras, motorways, streets and lanes, with exact depth and poses.

`street.py` is the demonstration's small world of boxes; this one is made so that a net trained on it alone
understands real footage. Axes, units and poses are those of `mcd.streets.ray_caster`.
"""
