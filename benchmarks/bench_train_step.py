"""The scene stage's training step with each backend in turn; see `training_step.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.conftest import Settings, record, run_rounds
from benchmarks.training_step import PHASES, TrainingStep

pytestmark = pytest.mark.timeout(0)


@pytest.mark.parametrize("phase", PHASES)
def bench_train_step(benchmark: Any, settings: Settings, tmp_path: Path, phase: str) -> None:
    size = (2, 64, 96) if settings.quick else settings.sizes[0]
    step = TrainingStep(phase, size, settings.device, tmp_path, compiled=settings.full)
    step.check()
    run_rounds(benchmark, settings, step)
    record(benchmark, kind="training step", **step.summary())
    torch._dynamo.reset()
