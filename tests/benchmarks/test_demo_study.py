"""The tables of the demonstration over several seeds."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import demo_study


def test_a_study_shows_what_each_seed_found_where_masks_were_not_given():
    regions = {region: {"abs_rel": 0.2, "a1": 0.8} for region in ("static", "dynamic", "all")}
    stages = dict.fromkeys(("scene", "pseudo", "final", "control"), regions)
    stages["final"] = regions | {"dynamic": {"abs_rel": 0.1, "a1": 0.9}}
    given = {"stages": stages, "seconds": {"scene": 60.0, "control": 7.0}}
    assert "| 3 | 0.50 | 0.50 | 1.00 | 60 |" in demo_study.table({3: given})
    assert demo_study.discovery_table({3: given}) == ""
    found = {"ground": {"iou": 0.854}, "instances": {"found": 4, "moving": 8, "precision": 0.5, "recall": 0.25}}
    assert demo_study.discovery_table({3: given | {"discovery": found}}).splitlines()[-2:] == [
        "| 3 | ground |  |  |  |  | 0.85 |",
        "| 3 | instances | 4 | 8 | 0.50 | 0.25 |  |",
    ]
