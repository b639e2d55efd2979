"""The documentation: its programs run as they stand, the site builds strictly and covers every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mcd
from mcd import ops

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    pytest.param(program, id=f"{page.name}-{number}")
    for page in PAGES
    for number, program in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S))
    if "import torch" in program  # the others are pieces of one
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_documentation_runs_as_it_stands(program: str, tmp_path: Path) -> None:
    finished = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_links_between_pages_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_can_be_read_at_once() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_operator_is_in_the_reference_and_in_the_overview() -> None:
    reference = (ROOT / "docs" / "reference" / "operators.md").read_text()
    overview = (ROOT / "docs" / "operators.md").read_text()
    for name in ops.OPERATORS:
        assert f"::: mcd.ops.{name}\n" in reference
        assert f"`{name}`" in overview


def test_every_public_name_has_a_docstring() -> None:
    for module in (mcd, ops):
        for name in module.__all__:
            thing = getattr(module, name)
            assert isinstance(thing, str | dict) or thing.__doc__, f"{module.__name__}.{name}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_strictly_and_executes_the_tutorial(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    reference = (tmp_path / "reference" / "operators.html").read_text()
    for name in ops.OPERATORS:
        assert f'id="mcd.ops.{name}.{name}"' in reference
    assert "data.root" in (tmp_path / "configuration.html").read_text()
    assert len(re.findall(r"<img[^>]*data:image/png", (tmp_path / "tutorial.html").read_text())) == 3
