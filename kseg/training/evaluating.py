"""Periodic evaluation of the network during training."""

import dataclasses
import math

from kseg.config.schema import VALIDATED_LOSSES
from kseg.evaluation.evaluator import Evaluator
from kseg.runs import checkpoints
from kseg.segmenters import inference_model
from kseg.training.reporting import validation_line


class Evaluating:
    """Evaluates the model on all devices, or in a cluster only on the chief.

    In a cluster the chief has a copy of the network, because a distributed variable can be read
    only by all workers together. The other workers wait for the chief at their next step.

    Args:
        run: `kseg.runs.Run`.
        trainer: `kseg.training.trainer.SegmentationTrainer`.
        evaluation_batches: function to a `tf.data.Dataset` over the evaluation split.
        strategy: `tf.distribute.Strategy`.
        cluster: `kseg.training.cluster.Cluster` or None.

    Attributes:
        weights: dict from name to variable, or in a cluster to array, as of the last `update`.
    """

    def __init__(self, run, trainer, evaluation_batches, strategy, cluster):
        self._shared = cluster is not None
        self._trained = self.weights = checkpoints.model_variables(trainer.evaluated)
        self._own = {}
        self._batches = evaluation_batches
        losses = trainer.losses_on_logits.items()
        used = {name: pair for name, pair in losses if pair[1] and name in VALIDATED_LOSSES}
        self._losses = {name: loss for name, (loss, _) in used.items()}
        self._weights = {name: weight for name, (_, weight) in used.items()}
        self._panels = run.config.train.panels
        self._batches_at_once = 1 if self._shared else strategy.num_replicas_in_sync
        if not self._shared:
            with strategy.scope():
                model = inference_model(trainer.evaluated)
        elif cluster.is_chief:
            segmenter = run.build_segmenter()
            self._own = checkpoints.model_variables(segmenter)
            model, strategy = inference_model(segmenter), None
        else:
            return
        self._evaluate = Evaluator(
            model,
            len(run.classes),
            losses=self._losses,
            strategy=strategy,
            pixel_format=run.pixel_format,
        )

    def update(self):
        """Brings the weights up to date; in a cluster all workers must call it."""
        if self._shared:
            self.weights = checkpoints.read(self._trained)
            for name, variable in self._own.items():
                variable.assign(self.weights[name])

    def __call__(self, step, *, saving, board, progress):
        """Scores the evaluation split, reports the scores, and saves the weights if they are best.

        Counts the evaluation for early stopping.

        Args:
            step: int, of the weights.
            saving: `kseg.training.saving.Saving`.
            board: `kseg.training.reporting.TensorBoard`.
            progress: `kseg.training.reporting.TrainingProgress`.

        Returns:
            `kseg.evaluation.evaluator.Evaluation`; its losses, if there are any, include their
            weighted sum as `loss`.
        """
        split = self._batches()
        count = max(int(split.cardinality()), 0)
        with progress.working(f"evaluating step {step}", count, unit="batches") as shown:
            evaluation = self._evaluate(
                split,
                num_examples=self._panels,
                progress=lambda _: shown.advance(self._batches_at_once),
            )
            terms = {name: w * evaluation.losses[name] for name, w in self._weights.items()}
            losses = evaluation.losses
            if terms:
                losses = {**losses, "loss": sum(terms.values())}
            evaluation = dataclasses.replace(evaluation, losses=losses)
            board.evaluation(step, evaluation)
            mean_iou = evaluation.scores.mean_iou
            saving.save_best(step, mean_iou, self.weights)
        best = saving.best
        progress.line(
            f"step {step}  mean IoU {mean_iou:.4f}  "
            + (
                f"(best {best['mean_iou']:.4f} at step {best['step']})"
                if best["step"]
                else "(no pixel that counts: none is the best)"
            )
            + validation_line(terms)
        )
        if warning := evaluation.warning():
            progress.line(warning)
        saving.patience.evaluated(mean_iou, losses.get("loss", math.nan))
        return evaluation
