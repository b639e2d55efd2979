"""benchmarks/gpu.sh, as far as a machine without a GPU can show that it works."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


def log(out: Path, name: str) -> str:
    with tarfile.open(out / "logs.tar.gz") as archive:
        return archive.extractfile(f"logs/{name}").read().decode()


def outcomes(out: Path) -> dict[str, str]:
    return {line.split("\t")[0]: line.split("\t")[1] for line in log(out, "parts.tsv").splitlines()}


def test_a_part_that_fails_spoils_no_other(tmp_path):
    done = run_script(tmp_path / "out", stand_in(tmp_path, '*"gpu small"*) echo why; exit 7 ;;'))
    assert outcomes(tmp_path / "out") == {
        "wheels": "absent: no wheels/*.whl" if not list(ROOT.glob("wheels/*.whl")) else "ok",
        "smoke": "ok",
        "small": "failed (7)",
        "operators-1": "ok",
        "step": "ok",
    }
    assert log(tmp_path / "out", "small.log") == "why\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"logs.tar.gz", "results.json"}
    assert "failed (7)" in done.stdout


def test_after_a_crash_a_new_process_goes_on(tmp_path):
    crash_once = f'*"gpu operators"*) [ -f {tmp_path}/crashed ] || {{ touch {tmp_path}/crashed; exit 3; }} ;;'
    run_script(tmp_path / "out", stand_in(tmp_path, crash_once))
    assert outcomes(tmp_path / "out")["operators-1"] == "failed (3)"
    assert outcomes(tmp_path / "out")["operators-2"] == "ok"


# python -c BARE WHEELS MODULE…: runs a module as if no packages were installed but these few with what they need, and
# those of a comma-separated list without.
BARE = """
import re, runpy, sys
from importlib import metadata

present, more = set(sys.argv[1].split(",")), {"torch", "triton", "numpy", "pytest", "pybind11", "mcd-depth"}
while more:
    name = more.pop()
    present.add(name)
    try:
        needed = [] if name == "mcd-depth" else metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        continue
    names = {re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-") for line in needed if "extra ==" not in line}
    more |= names - present
absent = {
    package for package, owners in metadata.packages_distributions().items()
    if not present & {owner.lower().replace("_", "-") for owner in owners}
}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)

assert {"matplotlib", "grpc"} <= absent and not {"numpy", "sympy"} & absent
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv[:] = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def wheels() -> dict[str, str]:
    """What `make wheels` fetches, and its versions."""
    lines = (ROOT / "benchmarks" / "wheels.txt").read_text().lower().splitlines()
    return dict(line.replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))


def run_bare(*command: str, more: Iterable[str] = ()) -> subprocess.CompletedProcess:
    settings = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = (sys.executable, "-W", "ignore", "-c", BARE, ",".join(more), *command)
    return subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)


def test_operator_tests_need_no_further_package():
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "--disable-warnings"]
    done = run_bare("pytest", "tests/ops", "--collect-only", *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    done = run_bare("pytest", "tests/ops/test_fuse_depth.py", "tests/ops/test_properties.py", *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "passed" in done.stdout and "1 skipped" in done.stdout


def test_operator_benchmarks_need_no_further_package(tmp_path):
    results = str(tmp_path / "results.json")
    for part in (["operators", results, "--device", "cpu", "--quick"], ["table", results]):
        done = run_bare("benchmarks.gpu", *part)
        assert done.returncode == 0, done.stdout + done.stderr
    tried = json.loads(Path(results).read_text())["tried"]
    assert set(tried.values()) == {"done"}
    assert all(name.split()[0] in done.stdout for name in tried)


def test_the_training_step_needs_the_wheels_and_torchvision_alone(tmp_path):
    results = tmp_path / "results.json"
    command = ["benchmarks.gpu", "step", str(results), "--device", "cpu", "--quick"]
    done = run_bare(*command, more=[*wheels(), "torchvision"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(results.read_text())["tried"].values()) == {"done"}, done.stdout


def test_without_a_folder_it_says_how_it_is_called():
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks/gpu.sh OUT" in done.stdout


def test_the_wheels_are_of_the_versions_that_are_tested():
    pins = wheels()
    required = (ROOT / "requirements.txt").read_text().lower().splitlines()
    for name, version in (line.split("==") for line in required if "==" in line):
        assert pins.get(name, version) == version, f"{name} is pinned to {pins[name]} for the wheels"


@pytest.mark.slow
def test_the_script_measures_every_operator(tmp_path):
    done = run_script(tmp_path, sys.executable, MINUTES="5")
    wanted = dict.fromkeys(("smoke", "small", "step", "operators-1"), "ok")
    assert wanted.items() <= outcomes(tmp_path).items(), done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["tried"].values()) == {"done"}
    for row in results["rows"]:
        if row["kind"] == "operator":
            assert row["operator"] in done.stdout.rsplit("12x192x512", 1)[1]
