"""benchmarks/gpu.sh, as far as a machine without a GPU can show that it works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run_script(out: Path, python: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {"DEVICE": "cpu", "MINUTES": "1", "PYTHON": python, **environment}
    return subprocess.run([SCRIPT, out], env=os.environ | settings, capture_output=True, text=True)


def stand_in(folder: Path, body: str) -> str:
    """An interpreter that only knows the parts it is told of; the table is printed by a real one."""
    path = folder / "python"
    path.write_text(f'#!/bin/bash\ncase "$*" in\n{body}\n*"gpu table"*) exec "{sys.executable}" "$@" ;;\nesac\n')
    path.chmod(0o755)
    return str(path)


def outcomes(out: Path) -> dict[str, str]:
    return {line.split("\t")[0]: line.split("\t")[1] for line in (out / "parts.tsv").read_text().splitlines()}


def test_a_part_that_fails_spoils_no_other(tmp_path):
    done = run_script(tmp_path / "out", stand_in(tmp_path, '*"gpu small"*) echo why; exit 7 ;;'))
    assert outcomes(tmp_path / "out") == {
        "wheels": "absent: no wheels/*.whl" if not list(ROOT.glob("wheels/*.whl")) else "ok",
        "small": "failed (7)",
        "step": "ok",
        "operators-1": "ok",
    }
    assert (tmp_path / "out" / "small.log").read_text() == "why\n"
    assert "failed (7)" in done.stdout


def test_after_a_crash_a_new_process_goes_on(tmp_path):
    crash_once = f'*"gpu operators"*) [ -f {tmp_path}/crashed ] || {{ touch {tmp_path}/crashed; exit 3; }} ;;'
    run_script(tmp_path / "out", stand_in(tmp_path, crash_once))
    assert outcomes(tmp_path / "out")["operators-1"] == "failed (3)"
    assert outcomes(tmp_path / "out")["operators-2"] == "ok"


def test_without_a_folder_it_says_how_it_is_called():
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks/gpu.sh OUT" in done.stdout


def test_the_wheels_are_of_the_versions_that_are_tested():
    lines = (ROOT / "benchmarks" / "wheels.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    required = (ROOT / "requirements.txt").read_text().lower().splitlines()
    for name, version in (line.split("==") for line in required if "==" in line):
        assert pins.get(name, version) == version, f"{name} is pinned to {pins[name]} for the wheels"


@pytest.mark.slow
def test_the_script_measures_every_operator(tmp_path):
    done = run_script(tmp_path, sys.executable, MINUTES="5")
    assert {"small": "ok", "step": "ok", "operators-1": "ok"}.items() <= outcomes(tmp_path).items(), done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["tried"].values()) == {"done"}
    for row in results["rows"]:
        if row["kind"] == "operator":
            assert row["operator"] in done.stdout.rsplit("12x192x512", 1)[1]
