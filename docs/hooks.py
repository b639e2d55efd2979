"""Pages that are generated when the site is built: the configuration from its schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGURATION = "<!-- configuration -->"
CONFIGS = "<!-- configs -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    for marker, table in ((CONFIGURATION, configuration), (CONFIGS, configs)):
        if marker in markdown:
            markdown = markdown.replace(marker, table())
    return markdown


def configuration() -> str:
    """A table for each section of the config: key, default, meaning."""
    from mcd.config import known_keys

    sections: dict[str, list[str]] = {}
    for key, default, text in known_keys():
        section = key.rsplit(".", 1)[0] if "." in key else ""
        cells = (f"`{key}`", f"`{default}`" if default is not None else "", text.replace("|", "\\|"))
        sections.setdefault(section, []).append(f"| {' | '.join(cells)} |")
    parts = []
    for section, rows in sections.items():
        title = f"## `{section}`" if section else "## The run"
        parts.append("\n".join([title, "", "| key | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def configs() -> str:
    """What each file of configs/ is for: its first comment."""
    rows = ["| config | what it is |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        comment = []
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            comment.append(line.lstrip("# ").strip())
        rows.append(f"| `{path.name}` | {' '.join(comment)} |")
    return "\n".join(rows)
