"""Where a figure was measured: machine, versions, commit, and what the C library's allocator was told.

By default fresh tensors are fresh pages, and page faults take most of the time of PyTorch on CPU; the Makefile's
GLIBC_TUNABLES keep freed memory mapped, in huge pages. Bars are judged by that, which favours the peers.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "numpy", "kornia", "torch-scatter", "fused-ssim", "pytorch3d")


def describe() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "commit": commit(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def commit() -> str:
    """The commit of the working tree, with a + if it has changes; "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*command, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MCD_COMMIT", "unknown")
    return head.stdout.strip() + "+" * bool(status.stdout.strip())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
