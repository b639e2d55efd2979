"""The house keeps its floors: no circle between rooms, the operator library alone, no stage that knows a later one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import rooms


def test_no_circle_between_rooms_and_the_operators_stand_alone() -> None:
    assert rooms.faults() == []


def test_a_circle_is_found() -> None:
    assert set(rooms.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_an_import_of_a_later_stage_is_found(tmp_path: Path) -> None:
    (tmp_path / "mcd" / "stages").mkdir(parents=True)
    for stage in rooms.STAGES:
        text = (
            "from mcd.stages.final import FinalStage\n" if stage == "ground" else "from mcd.stages.stage import Stage\n"
        )
        (tmp_path / "mcd" / "stages" / f"{stage}.py").write_text(text)
    assert rooms.later_stages(tmp_path) == ["mcd/stages/ground.py imports mcd.stages.final.FinalStage"]
