"""A page that shows a run: ``mcd report RUN`` writes RUN/report.html, which needs no other file.

A view in three dimensions, figures, pictures of held-out frames, loss curves, times, config and environment; what a run
has not got is left out. ``mcd report A B`` shows two runs side by side, in A-B.html beside A unless -o names a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from mcd.config import Config, load_config
from mcd.errors import McdError
from mcd.files import write_text
from mcd.report.changes import changes_gallery
from mcd.report.charts import COLOURS
from mcd.report.clip import POINTS
from mcd.report.contents import contents, curves, depth_tables
from mcd.report.gallery import Gallery, picture_source
from mcd.report.pictures import depth_panel, detection_gallery, motion_gallery
from mcd.report.view import shared, view_panel
from mcd.run.folder import differences
from mcd.training.profiling import GRAPH, PHASES

LARGEST = 8_000_000
"""Bytes that a page should have at most; where pictures would make it larger, they are coarser."""
QUALITIES = (90, 80, 65, 50)
Draw = Callable[[Config, Path], Gallery | None]

PANELS: dict[str, tuple[Draw, str, str]] = {
    "view": (view_panel, "one picture of the points of two frames", "no stage with a depth net"),
    "panel": (depth_panel, "one picture of a few frames", "no stage with a depth net"),
    "changes": (changes_gallery, "one picture of what the labels changed", "no final net, or nothing that moves"),
    "motion": (motion_gallery, "one picture of what moves by itself", "no net of residual motion"),
    "objects": (
        detection_gallery,
        "one picture of the objects found",
        "no stage that finds objects",
    ),
}
"""Options of the command line: what each draws, its help, and what a run lacks that has nothing to draw."""


def write_report(run_folder: Path | str, other: Path | str | None = None, output: Path | str | None = None) -> Path:
    """Write the page of a run, or of two side by side; returns its path.

    Args:
        output: None takes ``report.html`` in the run folder, for two runs ``A-B.html`` beside the first.

    Raises:
        ConfigError: a run has no readable config.yaml.
        DataError: its figures, logs or environment are broken; the message names the file.
    """
    folders = [Path(folder) for folder in (run_folder, other) if folder is not None]
    names = [folder.absolute().name for folder in folders]
    titles = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    # Two views share the room that a page has for one.
    runs = [contents(folder, title, POINTS // len(folders)) for folder, title in zip(folders, titles, strict=True)]
    templates = Environment(
        loader=PackageLoader("mcd.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    views = [run["view"]["data"] for run in runs if isinstance(run["view"], dict)]
    graphed = any(row["mean"].get(GRAPH) for run in runs for row in run["times"])
    shown = {
        "title": " and ".join(titles),
        "runs": runs,
        "shared": shared(views) if views else None,
        "depth": depth_tables(runs),
        "curves": curves(runs),
        "phases": dict(zip((*PHASES, GRAPH) if graphed else PHASES, (*COLOURS, "#999999"), strict=False)),
        "differences": _differences(runs),
    }
    for quality in QUALITIES:
        templates.filters["source"] = partial(picture_source, quality=quality)
        page = templates.get_template("page.html").render(shown)
        if len(page.encode()) <= LARGEST:
            break
    usual = folders[0] / "report.html" if other is None else folders[0].parent / f"{'-'.join(names)}.html"
    path = usual if output is None else Path(output)
    write_text(path, page)
    return path


def _differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys of the config in which two runs differ, with the value of each."""
    if len(runs) < 2:
        return {}
    first, second = (run["config"].model_dump(mode="json") for run in runs)
    return {key: list(values) for key, values in differences(first, second).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="mcd report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="a second run, shown beside the first")
    parser.add_argument("-o", "--output", type=Path, metavar="HTML", help="the page (default: RUN/report.html)")
    for name, (_, text, _) in PANELS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="PNG", help=f"write only {text}")
    options = parser.parse_args(arguments)
    wanted = [name for name in PANELS if getattr(options, name)]
    try:
        if not wanted:
            print(write_report(options.run, options.other, options.output))
            return 0
        if options.other:
            raise ValueError(f"--{wanted[0]} is a picture of one run, and two are named")
        for name in wanted:
            draw, _, missing = PANELS[name]
            gallery = draw(load_config(options.run / "config.yaml"), options.run)
            if gallery is None:
                raise ValueError(f"{options.run} has {missing}")
            gallery.write(getattr(options, name))
            print(getattr(options, name))
    except (McdError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
