"""The fuzzer notices what it is to notice; and configs near to valid ones are valid, or refused by name."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import trial
from fuzz.doors import DOORS, Door
from fuzz.mutation import damage
from mcd.config import Config, ConfigError, known_keys, parse_config


def build(place: Path) -> None:
    (place / "in").mkdir()
    (place / "in" / "file").write_text("content")


def fine(place: Path, draw: random.Random) -> int:
    (place / "out").mkdir()
    (place / "out" / "result").write_text("")
    return 0


def refuses(place: Path, draw: random.Random) -> int:
    print("this is wrong with it")
    return 1


def raises(place: Path, draw: random.Random) -> int:
    raise KeyError("no")


def silent(place: Path, draw: random.Random) -> int:
    return 1


def litters(place: Path, draw: random.Random) -> int:
    (place / "elsewhere").write_text("")
    return 0


def spoils(place: Path, draw: random.Random) -> int:
    for path in (place / "in").iterdir():
        path.write_text("other")
    return 0


def infinite(place: Path, draw: random.Random) -> int:
    (place / "out").mkdir()
    (place / "out" / "metrics.json").write_text('{"a": [1.0, Infinity]}')
    return 0


def hangs(place: Path, draw: random.Random) -> int:
    time.sleep(10)
    return 0


@pytest.mark.parametrize(
    ("enter", "problem"),
    [
        (fine, None),
        (refuses, None),
        (raises, "KeyError"),
        (silent, "says nothing"),
        (litters, "elsewhere was written"),
        (spoils, "was changed"),
        (infinite, "is not finite"),
        (hangs, "hangs"),
    ],
)
def test_what_goes_wrong_is_noticed_and_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    enter: Callable[[Path, random.Random], int],
    problem: str | None,
) -> None:
    monkeypatch.setattr(trial, "LONGEST", 1)
    monkeypatch.setitem(DOORS, "toy", Door(build, enter, "nothing"))
    found, refused = trial.attempt("toy", 3, tmp_path / "examples", tmp_path / "kept")
    assert refused == (enter in (refuses, silent))
    assert (tmp_path / "kept" / "toy-3" / "PROBLEM.txt").is_file() == (problem is not None)
    assert (found is None) if problem is None else (found is not None and problem in found)


QUICK = ("config", "sequence", "triplets", "store", "state", "masks", "prepare")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in DOORS
        # Published nets are too large for an example.
        if "words" not in name and name != "convert"
    ],
)
def test_what_is_not_damaged_is_let_through(tmp_path: Path, name: str) -> None:
    # What is drawn are formats, files or settings; some of these are refused rightly.
    for seed in range(6):
        place = tmp_path / str(seed)
        place.mkdir()
        DOORS[name].build(place)
        outcome = trial.judge(DOORS[name], random.Random(seed), place)
        assert outcome.problem is None
        if not outcome.refused:
            return
    pytest.fail("all are refused")


def test_a_seed_gives_the_same_damage() -> None:
    data = b"a: 1\nb: [2, 3]\n" * 20
    damaged = [damage(random.Random(seed), data) for seed in range(200)]
    assert damaged == [damage(random.Random(seed), data) for seed in range(200)]
    assert sum(other != data for other in damaged) > 180


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.integers(-2, 70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(("auto", "light", "published", "cpu", "native", "scene", "sqlite", "best", ".")),
)
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner), max_leaves=5
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([name for name, _, _ in known_keys()]), VALUES, min_size=1, max_size=4))
def test_a_config_is_valid_or_refused_by_name(values: dict[str, Any]) -> None:
    document: dict[str, Any] = {}
    for key, value in values.items():
        section = document
        *outer, last = key.split(".")
        for name in outer:
            section = section.setdefault(name, {})
        section[last] = value
    config, said = None, ""
    try:
        config = parse_config(document)
    except ConfigError as error:
        said = str(error)
    assert all(line.startswith("  ") for line in said.splitlines()[1:])
    # What is written into a run folder says the same when it is read back.
    assert config is None or Config.model_validate(config.model_dump(mode="json")).digest() == config.digest()
