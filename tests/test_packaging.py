"""What is installed: the wheel outside the tree, a checkout without a build, the build's own errors, the versions."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from itertools import chain
from pathlib import Path

import pytest
import yaml
from bare import CORE, link_packages, run_bare
from packaging.requirements import Requirement

import mcd

ROOT = Path(__file__).parents[1]
PACKAGES = Path(sysconfig.get_path("purelib"))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, **everything)


def succeed(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    finished = run(*command, cwd=cwd, **environment)
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cuda", ["auto", "0"])
def test_the_wheel_works_outside_the_tree(tmp_path: Path, cuda: str) -> None:
    # ninja's folder is kept between builds, so this compiles only what is new: mostly the CPU build's bindings.
    command = (sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", tmp_path, ROOT)
    said = succeed(*command, MCD_CUDA=cuda)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("mcd_depth-")
    site = link_packages(tmp_path / "site", *CORE)
    linked = set(site.iterdir())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (information,) = site.glob("mcd_depth-*.dist-info")
    assert set(site.iterdir()) - linked == {site / "mcd", information}
    assert (information / "licenses" / "LICENSE").is_file()
    assert "mcd = mcd.cli:main" in (information / "entry_points.txt").read_text()
    assert (site / "mcd" / "py.typed").is_file()
    configs = {path.name for path in (ROOT / "configs").iterdir()}
    assert {path.name for path in (site / "mcd" / "configs").iterdir()} == configs

    # Beside torch and NumPy alone: operators, README's snippet, the time of the import.
    used = run_bare(site, str(ROOT / "tests/gates/installed.py"), str(ROOT / "README.md"), cwd=tmp_path)
    assert used.returncode == 0, used.stdout
    facts = json.loads(used.stdout.splitlines()[-1])
    assert facts["mcd"] == str(site / "mcd" / "__init__.py")
    assert facts["operators"] >= 10
    assert facts["snippets"] >= 1
    kernels = run_bare(site, "-c", "import mcd.kernels; print(mcd.kernels.__file__)", cwd=tmp_path)
    assert kernels.stdout == f"{site}/mcd/kernels/__init__.py\n"
    cpu_only = "mcd: building for CPU only" in said
    assert cpu_only or cuda == "auto"
    assert cpu_only == ("built without CUDA" in facts["cuda"])


def test_the_installed_package_is_mcd_depth_and_finds_its_kernels_from_anywhere(tmp_path: Path) -> None:
    assert distribution("mcd-depth").metadata["Name"] == "mcd-depth"
    found = succeed(sys.executable, "-c", "import mcd.kernels; print(mcd.kernels.__file__)", cwd=tmp_path)
    assert Path(found.strip()).name == "__init__.py"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"the compiled module mcd._C does not load \(.*\); `make` or `pip install -e .` builds it"),
        ('version = "0.0.9"', f"mcd._C was built for 0.0.9, this is {mcd.__version__}: build again .*"),
    ],
    ids=["none", "of another version"],
)
def test_without_a_fitting_build_the_reference_serves_and_the_reason_is_said_once(
    tmp_path: Path, module: str | None, message: str
) -> None:
    site = link_packages(tmp_path / "site", *CORE)
    shutil.copytree(ROOT / "mcd", site / "mcd", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if module:
        (site / "mcd" / "_C.py").write_text(module)
    code = "import torch, mcd; mcd.ops.smoothness_loss([torch.rand(1, 1, 3, 4)], [torch.rand(1, 3, 3, 4)]); "
    code += "print(mcd.available_backends()['native'])"
    said = run_bare(site, "-c", code, cwd=tmp_path)
    assert said.returncode == 0, said.stdout
    warning, reason = said.stdout.splitlines()
    assert warning == f"mcd: {reason}; until then operators run as slow PyTorch"
    assert re.fullmatch(message, reason)


def test_the_build_stamps_the_module_with_the_version() -> None:
    assert importlib.import_module("mcd._C").version == mcd.__version__


def test_without_a_compiler_the_build_says_so_and_goes_on() -> None:
    said = succeed(sys.executable, "setup.py", "build_ext", "--dry-run", MCD_CUDA="0", PATH="", CXX="")
    assert said.count("mcd: no C++ compiler (c++ is not on PATH)") == 1


def test_the_sdist_has_all_that_a_build_needs(tmp_path: Path) -> None:
    succeed(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == f"mcd_depth-{mcd.__version__}.tar.gz"
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("csrc", "kernels", "configs", "mcd", "tests")
    files = {str(file.relative_to(ROOT)) for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()}
    files = {file for file in files if "__pycache__" not in file and not file.endswith(".so")}
    assert files | {"setup.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MCD_CUDA": "yes"}, "MCD_CUDA is 'yes', it should be auto, 0, 1 or pypi"),
        pytest.param(
            {"MCD_CUDA": "1", "CUDA_HOME": "/nowhere", "PATH": ""},
            "no CUDA toolkit found",
            marks=pytest.mark.skipif((PACKAGES / "nvidia/cu13/bin/nvcc").exists(), reason="PyPI's toolkit is there"),
        ),
        ({"MCD_CUDA": "0", "CXX": "no-such-compiler"}, "no C++ compiler: no-such-compiler is not on PATH"),
    ],
)
def test_a_build_that_cannot_be_says_why(environment: dict[str, str], message: str) -> None:
    finished = run(sys.executable, "setup.py", "build_ext", "--dry-run", **environment)
    assert finished.returncode != 0
    assert message in finished.stdout


def test_a_build_without_cuda_says_that_it_is_for_cpu_only() -> None:
    assert "mcd: building for CPU only" in succeed(sys.executable, "setup.py", "build_ext", "--dry-run", MCD_CUDA="0")


def test_make_without_a_fitting_python_says_which_it_needs(tmp_path: Path) -> None:
    finished = run("make", "-C", tmp_path, "-f", ROOT / "Makefile", ".venv/bin/python", "PYTHON=false")
    assert finished.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in finished.stdout


def test_every_requirement_is_pinned_within_its_range_and_names_no_address() -> None:
    lines = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-cuda.txt"))
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", lines, flags=re.MULTILINE))
    assert len(pinned) == len([line for line in lines.splitlines() if line and not line.startswith("#")])

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    # Peers are installed by `make peers`, which has their versions.
    groups = [requirements for name, requirements in extras.items() if name != "peers"]
    ranges = [*project["build-system"]["requires"], *project["project"]["dependencies"], *chain(*groups)]
    versions = {name.lower(): version for name, version in pinned.items()}
    unused = set(versions) - {"nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime"}
    for requirement in map(Requirement, ranges):
        if requirement.name == "mcd-depth":
            assert requirement.extras <= set(extras), requirement
            continue
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement
        unused.discard(requirement.name.lower())
    assert not unused, "pinned, but in no range of pyproject.toml"


def test_the_library_needs_torch_and_numpy_and_all_is_every_extra_of_a_user() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [Requirement(line).name for line in project["dependencies"]] == ["torch", "numpy"]
    (everything,) = map(Requirement, project["optional-dependencies"]["all"])
    assert everything.extras == set(project["optional-dependencies"]) - {"all", "dev", "docs", "peers"}


def test_the_version_is_written_alike_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mcd.__version__
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == mcd.__version__
    assert distribution("mcd-depth").version.partition("+")[0] == mcd.__version__


def test_the_hosted_workflow_runs_the_gates_that_ci_runs() -> None:
    (job,) = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"].values()
    gates = re.findall(r"for gate in (.*); do", (ROOT / ".ci/run").read_text())
    assert job["strategy"]["matrix"]["gate"] == gates[0].split()
    assert job["steps"][-1]["run"].startswith("make ${{ matrix.gate }}")
