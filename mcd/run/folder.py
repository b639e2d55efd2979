"""The run folder: resolved config, environment, logs, metrics, and a place for every stage.

runs/NAME/{config.yaml, env.json, metrics.json, report.html, log/}
runs/NAME/STAGE/{weights.safetensors, last/state.pt, done.json}
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import mcd
from mcd import world
from mcd.config import STAGES, Config, ConfigError, load_config
from mcd.errors import McdError
from mcd.files import DataError, read_json, write_json, write_text


class RunError(McdError, RuntimeError):
    """A run folder that cannot be used."""


def run_folder(config: Config) -> Path:
    return config.runs / (config.run or "run")


class Run:
    """One run on disk. Opening an existing folder continues it; settings of stages that have not begun may change."""

    def __init__(self, config: Config):
        self.config = config
        self.path = run_folder(config)
        try:
            (self.path / "log").mkdir(parents=True, exist_ok=True)
            self._describe()
        except OSError as error:
            raise RunError(f"run folder {self.path} cannot be written: {error}") from error

    @classmethod
    def at(cls, path: Path, config: Config) -> Run:
        """The run in a folder, to look at: nothing is checked or written."""
        run = cls.__new__(cls)
        run.path, run.config = path, config
        return run

    def stage(self, name: str) -> Path:
        """Folder of one stage."""
        return self.path / name

    @property
    def store(self) -> Path:
        """File of the scene nets' predictions."""
        return self.path / "predictions.sqlite"

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left in ``done.json``, or None.

        Raises:
            DataError: it is broken.
        """
        done = self.stage(stage) / "done.json"
        if not done.is_file():
            return None
        facts = read_json("facts of a stage", done)
        if not isinstance(facts.setdefault("seconds", 0.0), int | float):
            raise DataError(f"facts of a stage {done}: 'seconds' is {facts['seconds']!r}, it should be a number")
        return facts

    def finish(self, stage: str, **facts: Any) -> None:
        write_json(self.stage(stage) / "done.json", facts)

    def _describe(self) -> None:
        path = self.path / "config.yaml"
        if path.is_file():
            try:
                before = load_config(path)
            except ConfigError as error:
                raise RunError(
                    f"{path} was written by another version, or is broken: {error}; choose another --set run="
                ) from None
            if before.digest() != self.config.digest():
                self._check_changes(differences(before.model_dump(mode="json"), self.config.model_dump(mode="json")))
        write_text(path, yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        write_json(self.path / "env.json", environment())

    def _check_changes(self, changed: Mapping[str, tuple[Any, Any]]) -> None:
        """Refuse other settings than before, unless the stages that they are of, and all after, have not begun."""
        concerned = {key.split(".")[0] for key in changed}
        # Settings of no stage concern them all.
        first = min(STAGES.index(name) for name in concerned) if concerned <= set(STAGES) else 0
        begun = [self.stage(name) for name in STAGES[first:] if self.stage(name).exists()]
        # Whichever stage filled the store, it is of the scene's nets and of the settings of the predictions.
        if first <= STAGES.index("predictions") and self.store.exists():
            begun.append(self.store)
        if begun:
            said = "; ".join([f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items()][:5])
            raise RunError(
                f"{self.path} holds a run of another config ({said}); choose another --set run=NAME, or delete "
                f"{', '.join(map(str, begun))} to make that anew"
            )
        # Figures of finished stages stand in their own files; those of deleted ones should not stay.
        (self.path / "metrics.json").unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """Machine, versions and commit that a figure belongs to."""
    packages = ("torch", "torchvision", "timm", "triton", "numpy", "mcd-depth")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world.launched(),
        "communication": world.communication() if world.launched() > 1 else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "changes": _git("status", "--porcelain"),
    }


def version() -> str:
    """What a process runs, to be told from what another one runs."""
    return f"mcd {mcd.__version__} of commit {_git('rev-parse', 'HEAD') or 'unknown'} on torch {torch.__version__}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys of two configs whose values differ, with both; where and how a run is watched does not count."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            found |= differences(old, value, f"{prefix}{key}.")
        elif old != value and prefix + key not in ("run", "runs", "log_every", "picture_every", "device"):
            found[prefix + key] = (old, value)
    return found
