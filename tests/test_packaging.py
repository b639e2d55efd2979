"""What is installed: the wheel outside the tree, a checkout without a build, the build's own errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE = """
import torch, mcd, mcd.kernels, mcd.train
from mcd import ops
args = torch.rand(1, 3, 4, 6), torch.ones(1, 1, 4, 6), torch.eye(3)[None], torch.eye(4)[None]
ops.backward_warp(*args, backend="native")
print(mcd.__file__)
print(mcd.kernels.__file__)
"""


def run(*command: str, cwd: Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert not check or found.returncode == 0, found.stdout + found.stderr
    return found


@pytest.mark.slow
def test_the_wheel_works_outside_the_tree(tmp_path: Path) -> None:
    # The build folder is kept between builds, so this compiles nothing that is not new.
    pip = ("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path))
    run(sys.executable, *pip, str(ROOT))
    (wheel,) = tmp_path.glob("mcd_depth-*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"mcd", "mcd_depth"}
    places = run(sys.executable, "-c", USE, cwd=tmp_path, PYTHONPATH=str(installed)).stdout.split()
    assert places == [str(installed / "mcd" / "__init__.py"), str(installed / "mcd" / "kernels" / "__init__.py")]


def test_the_installed_package_resolves_the_kernels_from_anywhere(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        assert run(sys.executable, "-c", "import mcd.kernels", cwd=folder).returncode == 0


def test_a_checkout_without_a_build_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mcd", tmp_path / "mcd", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = "import mcd; print(mcd.__file__, mcd.available_backends()['native'])"
    found = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)).stdout
    assert found.startswith(str(tmp_path))
    assert "`make` or `pip install -e .` builds it" in found


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MCD_CUDA": "yes"}, "MCD_CUDA is 'yes', it should be auto, 0, 1 or pypi"),
        ({"MCD_CUDA": "1", "CUDA_HOME": "/nowhere", "PATH": "/usr/bin:/bin"}, "no CUDA toolkit found"),
        ({"MCD_CUDA": "0", "CXX": "no-such-compiler"}, "no-such-compiler"),
    ],
)
def test_a_build_that_cannot_be_says_why(environment: dict[str, str], message: str) -> None:
    found = run(sys.executable, "setup.py", "build_ext", "--dry-run", check=False, **environment)
    assert found.returncode != 0
    assert message in found.stderr


def test_a_build_without_a_compiler_for_cuda_says_that_it_is_for_cpu_only() -> None:
    found = run(sys.executable, "setup.py", "build_ext", "--dry-run", MCD_CUDA="0")
    assert "mcd: building for CPU only" in found.stderr


def test_requirements_are_exact_and_name_no_address() -> None:
    for file in ("requirements.txt", "requirements-cuda.txt"):
        lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
        assert [line for line in lines if "==" not in line or "://" in line or line.startswith("-")] == []
