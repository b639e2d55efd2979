"""The scene stage's training step with each backend in turn; see `training_step.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.conftest import Settings, run_rounds
from benchmarks.training_step import TrainingStep

pytestmark = pytest.mark.timeout(0)


def bench_train_step(benchmark: Any, settings: Settings, tmp_path: Path) -> None:
    size = (2, 64, 96) if settings.quick else settings.sizes[0]
    step = TrainingStep(size, settings.device, tmp_path, compiled=settings.full)
    step.check()
    run_rounds(benchmark, settings, step)
    benchmark.extra_info.update(kind="training step", **step.summary())
    torch._dynamo.reset()
