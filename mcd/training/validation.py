"""How good the nets of a stage are while it trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mcd.data import EvaluationSet, fixed_batches, prefetch
from mcd.evaluation.protocol import evaluate_depth
from mcd.run.context import Context
from mcd.stages import TrainingStage


class Validation:
    """Mean validation loss over a fixed set of batches, or (published option) abs_rel on ground truth."""

    def __init__(self, stage: TrainingStage, context: Context):
        self._stage, self._context = stage, context
        self._dataset = stage.dataset("val", None)

    def score(self, step: int) -> float:
        stage, config = self._stage, self._context.config
        for net in stage.nets.values():
            net.eval()
        if stage.schedule.select == "ground_truth":
            return self._abs_rel(stage.nets["depth"])
        schedule, device = stage.schedule, self._context.device
        loader = fixed_batches(
            self._dataset, schedule.batch, config.data.workers, device, limit=schedule.validate_batches
        )
        totals: list[Tensor] = []
        with torch.no_grad():
            totals.extend(
                stage.loss(batch, stage.forward(batch, step), step)["total"]
                for batch in prefetch(loader, device, config.channels_last)
            )
        return float(torch.stack(totals).mean()) if totals else math.inf

    def _abs_rel(self, net: nn.Module) -> float:
        config, context = self._context.config, self._context

        def predict(batch: dict[str, Any]) -> Tensor:
            with torch.inference_mode(), context.networks():
                return net(batch["image"])[0].float()

        regions = evaluate_depth(predict, EvaluationSet(config), config.evaluation, context.device, config.data.workers)
        return regions["all"]["abs_rel"]
