"""How good the nets of a stage are while it trains."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mcd import world
from mcd.data import Batch, EvaluationSet, end_workers, fixed_batches, prefetch
from mcd.evaluation.protocol import evaluate_depth
from mcd.run.context import Context
from mcd.stages import TrainingStage


class Validation:
    """Mean validation loss over a fixed set of batches, or (published option) abs_rel on ground truth.

    Many processes take batches in turn, whole ones: each has the loss that one process would find. The loader's
    workers live from one validation to the next, until :meth:`close`.
    """

    def __init__(self, stage: TrainingStage, context: Context):
        self._stage, self._context = stage, context
        self._loader = self._batches()

    def renew(self) -> None:
        """Score with what the stage's data set says now."""
        self.close()
        self._loader = self._batches()

    def _batches(self) -> DataLoader[Batch]:
        schedule, config = self._stage.schedule, self._context.config
        return fixed_batches(
            self._stage.dataset("val", None),
            schedule.batch,
            config.data.workers,
            self._context.device,
            limit=schedule.validate_batches,
            part=slice(world.rank(), None, world.size()),
            persistent=True,
        )

    def close(self) -> None:
        """End the workers."""
        end_workers(self._loader)

    def score(self, step: int) -> float:
        """The score of the nets, the same in every process; they are left in training."""
        stage = self._stage
        for net in stage.nets.values():
            net.eval()
        if stage.schedule.select == "ground_truth":
            score = world.from_first(lambda: self._abs_rel(stage.nets["depth"]))
        else:
            score = self._mean_loss(step)
        stage.set_mode(step)
        return score

    def _mean_loss(self, step: int) -> float:
        stage, config, device = self._stage, self._context.config, self._context.device
        found: list[Tensor] = []
        with torch.no_grad(), world.alone():
            found.extend(
                stage.loss(batch, stage.forward(batch, step), step)["total"]
                for batch in prefetch(self._loader, device, config.channels_last)
            )
        shares = world.gather([loss.cpu() for loss in found])
        totals = [loss for turn in zip_longest(*shares) for loss in turn if loss is not None]
        return float(torch.stack(totals).mean()) if totals else math.inf

    def _abs_rel(self, net: nn.Module) -> float:
        config, context = self._context.config, self._context

        def predict(batch: dict[str, Any]) -> Tensor:
            with torch.inference_mode(), context.networks():
                return net(batch["image"])[0].float()

        regions = evaluate_depth(predict, EvaluationSet(config), config.evaluation, context.device, config.data.workers)
        return regions["all"]["abs_rel"]
