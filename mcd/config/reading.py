"""Reading a config: a YAML file, then ``--set a.b=c``; every unknown or ill-typed key is rejected by name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mcd.config.sections import Config
from mcd.errors import McdError

PACKAGED = Path(__file__).parents[1] / "configs"
"""The configs that come with the program: inside the installed package, beside it in a checkout."""
if not PACKAGED.is_dir():
    PACKAGED = Path(__file__).parents[2] / "configs"


class ConfigError(McdError, ValueError):
    """A config that cannot be used; the message names the key."""


def find_config(path: Path | str) -> Path:
    """The file of this path, or the packaged config of this name: ``kitti``, ``kitti.yaml`` or ``configs/kitti.yaml``.

    Raises:
        ConfigError: there is neither; the message lists the packaged ones.
    """
    path = Path(path)
    packaged = PACKAGED / f"{path.stem}.yaml"
    if not path.is_file() and path in (Path(path.stem), Path(packaged.name), Path("configs", packaged.name)):
        path = packaged if packaged.is_file() else path
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in PACKAGED.glob("*.yaml")))
        raise ConfigError(f"config {path} does not exist; those that come with mcd are {names}")
    return path


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML config, a file or one that comes with the program, and lay ``a.b=c`` assignments over it.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown (the nearest known one is named),
            a value has the wrong type, or an assignment is not of the form ``a.b=c``.
    """
    path = find_config(path)
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"config {path} must be a mapping of keys, not {type(document).__name__}")
    for assignment in overrides:
        _assign(document, assignment)
    document.setdefault("run", path.stem)
    return parse_config(document, source=str(path))


def parse_config(document: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a mapping; see :func:`load_config` for the errors."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        lines = [f"{source} is not valid:"]
        lines += [f"  {_explain(dict(item))}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Every key as (dotted name, default, description), for ``--help`` and for suggestions."""
    keys: list[tuple[str, Any, str]] = []
    for name, field in section.model_fields.items():
        nested = _section_of(field.annotation)
        default = field.get_default(call_default_factory=True)
        if nested is None:
            keys.append((prefix + name, default, field.description or ""))
        else:
            keys.extend(
                (key, getattr(default, key.rsplit(".", 1)[1], value) if default is not None else value, text)
                for key, value, text in known_keys(nested, f"{prefix}{name}.")
            )
    return keys


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _explain(item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        names = [name for name, _, _ in known_keys()] + sorted(
            {n.split(".")[0] for n, _, _ in known_keys() if "." in n}
        )
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
    value = item.get("input")
    got = "" if isinstance(value, dict | BaseModel) or item["type"] == "missing" else f" (got {value!r})"
    return f"'{key}': {item['msg']}{got}" if key else f"{item['msg']}{got}"


def _assign(document: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {assignment}: expected KEY=VALUE, for example --set scene.lr=0.001")
    *sections, last = key.split(".")
    for name in sections:
        child = document.get(name)
        if child is None:
            child = document[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {assignment}: '{name}' is a value, not a section")
        document = child
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment}: {error}") from error
    # YAML reads 1e-3 as text; a number is meant.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if last in ("steps", "epochs") and value is not None:
        document.pop("epochs" if last == "steps" else "steps", None)
    document[last] = value
