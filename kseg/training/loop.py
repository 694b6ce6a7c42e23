"""The training loop: resuming, checks for NaN, evaluation, checkpoints, stopping on signals."""

import contextlib
import functools
import signal
import sys

import numpy as np

from kseg import waiting
from kseg.errors import Interrupted, UserError
from kseg.evaluation.evaluator import Evaluator
from kseg.progress import Progress
from kseg.runs import checkpoints, step_file
from kseg.runs.finite import describe_non_finite
from kseg.runs.lock import hold
from kseg.segmenters import inference_model
from kseg.training.build import build_trainer
from kseg.training.distribution import anywhere, build_strategy, use_xla
from kseg.training.initialization import load_pretrained
from kseg.training.reporting import TensorBoard, TrainingProgress
from kseg.training.trainer import build_step

_AGREE_EVERY = 10  # Steps between checks whether any worker was asked to stop.


class NonFiniteLossError(UserError):
    """A loss term is NaN or infinite."""


class NonFiniteWeightsError(UserError):
    """A weight, or other state of the training, is NaN or infinite."""


def train(run, training_batches, evaluation_batches, *, strategy=None, cluster=None):
    """Trains a run to its last step, from its newest checkpoint or its pretrained weights.

    Args:
        run: `kseg.runs.Run`.
        training_batches: function from a start step to an endless `tf.data.Dataset` of global
            batches `{"image", "label"}`, whose first batch is that of the start step. In a cluster
            it also takes `worker`, `num_workers` and `num_replicas`, and yields this worker's part
            of each batch, replica by replica.
        evaluation_batches: function to a `tf.data.Dataset` over the evaluation split, see
            `kseg.evaluation.evaluator.Evaluator`.
        strategy: `tf.distribute.Strategy`, or None: that of `train.devices`.
        cluster: `kseg.training.cluster.Cluster` or None. All its workers need the run's folder
            at the same path; only the chief evaluates, prints and writes.

    Returns:
        dict with `step`, `best_mean_iou`, `best_step`, and `initial_weights`, the source of the
        initial weights or `"random"`.

    Raises:
        NonFiniteLossError: if a loss term is NaN or infinite; no checkpoint is written then.
        NonFiniteWeightsError: if a weight, a moving statistic or other state is NaN or infinite,
            before it is evaluated or written.
        Interrupted: after SIGINT or SIGTERM, with the state saved.
        UserError: if config and devices do not fit, a checkpoint is damaged or of another
            experiment, or another process trains in the run's folder.
    """
    if cluster is not None and not cluster.is_chief:
        return _train(run, training_batches, evaluation_batches, strategy, cluster, None)
    with hold(run.path) as lock:
        return _train(run, training_batches, evaluation_batches, strategy, cluster, lock)


def _train(run, training_batches, evaluation_batches, strategy, cluster, lock):
    """As `train`, with the lock of the run's folder; None on workers other than the chief."""
    config = run.config
    settings = config.train
    strategy = strategy or build_strategy(settings.devices)
    is_chief = cluster is None or cluster.is_chief
    replica_count = strategy.num_replicas_in_sync
    if config.data.batch_size % replica_count:
        raise UserError(
            f"`data.batch_size` must be divisible by the {replica_count} devices. Received: "
            f"{config.data.batch_size}. Change it, or set train.devices"
        )
    jit_compile = use_xla(settings.jit_compile, strategy)
    with Progress(
        f"building {config.model.head.name} on {config.model.backbone.name}", shown=is_chief
    ):
        trainer = build_trainer(run, strategy)
    state = checkpoints.training_variables(trainer)
    watch = _FiniteWatch(run, state)
    meta = _resume(run, state, is_chief=is_chief)
    if meta is None:
        best, step = {"mean_iou": None, "step": None}, 0
        with Progress("loading pretrained weights", shown=is_chief):
            initial_weights = load_pretrained(trainer.segmenter, config.model)
        watch.check_weights(0)
    else:
        best, step, initial_weights = meta["best"], meta["step"], meta["initial_weights"]
        watch.intact_step = step

    def save():
        if watch.intact_step == step:
            return
        watch.intact_step = step
        arrays = checkpoints.read(state)
        if not is_chief:
            return
        lock.check()
        with progress.working(f"writing the checkpoint of step {step}"):
            checkpoints.save(
                run.path / "checkpoints" / step_file(step),
                arrays,
                {"step": step, "best": best, "initial_weights": initial_weights, **run.identity()},
            )
        for old in run.checkpoint_steps()[: -settings.keep_checkpoints]:
            (run.path / "checkpoints" / step_file(old)).unlink()

    evaluator = _Evaluator(run, trainer, strategy, cluster)
    batches_at_once = 1 if cluster else replica_count
    board = TensorBoard(run.path / "tensorboard", run.classes) if is_chief else None
    progress = TrainingProgress(step, settings.steps, config.data.batch_size, quiet=not is_chief)
    train_step = build_step(trainer, strategy, jit_compile=jit_compile)
    batches = iter(_distributed(training_batches, step, strategy, cluster))
    with _StopSignals() as stop_signals:
        while step < settings.steps:
            if progress.is_new:
                with progress.working("compiling the training step"):
                    logs = train_step(waiting.next_batch(batches))
            else:
                logs = train_step(waiting.next_batch(batches))
            step += 1
            progress.step_done()
            watch.check(step, logs)
            if step % settings.log_every == 0 or step == settings.steps or progress.is_first:
                values = watch.flush()
                values["learning_rate"] = float(trainer.optimizer.learning_rate)
                values |= progress.report(step, values, trainer.term_weights(step - 1))
                if is_chief:
                    board.scalars(step, values)
            evaluating = step % settings.evaluate_every == 0 or step == settings.steps
            saving = step % settings.checkpoint_every == 0 or step == settings.steps
            stopping = stop_signals.received
            if cluster:  # All stop at the same step, whoever was asked to.
                stopping = step % _AGREE_EVERY == 0 and anywhere(strategy, stopping)
            if evaluating or saving or stopping:
                watch.flush()
                watch.check_weights(step)
            if evaluating:
                evaluator.update()
            if evaluating and is_chief:
                split = evaluation_batches()
                count = max(int(split.cardinality()), 0)
                with progress.working(f"evaluating step {step}", count, unit="batches") as shown:
                    evaluation = evaluator(
                        split,
                        num_examples=settings.panels,
                        progress=lambda _, shown=shown: shown.advance(batches_at_once),
                    )
                    board.evaluation(step, evaluation)
                    mean_iou = evaluation.scores.mean_iou
                    if _is_better(mean_iou, best["mean_iou"]):
                        best = {"mean_iou": mean_iou, "step": step}
                        lock.check()
                        checkpoints.save(
                            run.path / "checkpoints" / "best.npz",
                            evaluator.weights,
                            {**best, **run.identity()},
                        )
                progress.line(
                    f"step {step}  mean IoU {mean_iou:.4f}  "
                    + (
                        f"(best {best['mean_iou']:.4f} at step {best['step']})"
                        if best["step"]
                        else "(no pixel that counts: none is the best)"
                    )
                )
            if saving or stopping:
                save()
            if stopping and step < settings.steps:
                if cluster:  # A worker that is gone takes the others with it: the chief comes last.
                    anywhere(strategy, False)
                raise Interrupted(f"stopped at step {step}; the same command resumes there")
    if is_chief:
        board.close()
    return {
        "step": step,
        "best_mean_iou": best["mean_iou"],
        "best_step": best["step"],
        "initial_weights": initial_weights,
    }


def _resume(run, state, *, is_chief):
    """Restores all state from the newest checkpoint.

    Args:
        run: `kseg.runs.Run`.
        state: dict from name to variable.
        is_chief: bool; only the chief prints and deletes.

    Returns:
        dict, the checkpoint's metadata; None if there is no checkpoint. A checkpoint with weights
        that are not finite, as earlier versions could write, is deleted in favor of the previous
        one.

    Raises:
        UserError: if the checkpoint is damaged, or of another experiment.
    """
    for step in reversed(run.checkpoint_steps()):
        file = run.path / "checkpoints" / step_file(step)
        try:
            meta = checkpoints.restore(
                file, state, check=functools.partial(run.check_checkpoint, file)
            )
        except checkpoints.NonFiniteCheckpointError as error:
            if is_chief:
                print(f"warning: {error}. It is deleted", file=sys.stderr, flush=True)
                file.unlink()
            continue
        best = meta.get("best") or {}
        if not _is_better(best.get("mean_iou"), None):  # NaN, of an earlier version.
            best = {"mean_iou": None, "step": None}
        if is_chief:
            print(f"resuming from step {meta['step']} of {run.config.train.steps}", flush=True)
        return {"initial_weights": "unknown", **meta, "best": best}
    return None


def _is_better(mean_iou, best):
    """Whether a score is the best so far. NaN never is; of equal scores the newer one is."""
    if mean_iou is None or np.isnan(mean_iou):
        return False
    return best is None or mean_iou >= best


class _Evaluator:
    """Evaluates the trained model on all devices, or in a cluster on the chief alone.

    In a cluster the chief has a copy of the network, because a distributed variable can be read
    only by all workers together. The other workers wait for the chief at their next step.

    Attributes:
        weights: dict from name to variable, or in a cluster to array, as of the last `update`.
    """

    def __init__(self, run, trainer, strategy, cluster):
        self._shared = cluster is not None
        self._trained = self.weights = checkpoints.model_variables(trainer.evaluated)
        self._own = {}
        if not self._shared:
            with strategy.scope():
                model = inference_model(trainer.evaluated)
        elif cluster.is_chief:
            segmenter = run.build_segmenter()
            self._own = checkpoints.model_variables(segmenter)
            model, strategy = inference_model(segmenter), None
        else:
            return
        self._evaluate = Evaluator(model, len(run.classes), strategy=strategy)

    def update(self):
        """Brings the weights up to date; in a cluster all workers must call it."""
        if self._shared:
            self.weights = checkpoints.read(self._trained)
            for name, variable in self._own.items():
                variable.assign(self.weights[name])

    def __call__(self, batches, **options):
        return self._evaluate(batches, **options)


def _distributed(training_batches, step, strategy, cluster):
    """The distributed dataset from a start step on."""
    if cluster is None:
        return strategy.experimental_distribute_dataset(training_batches(step))

    def of_worker(context):
        return training_batches(
            step,
            worker=context.input_pipeline_id,
            num_workers=context.num_input_pipelines,
            num_replicas=context.num_replicas_in_sync,
        )

    return strategy.distribute_datasets_from_function(of_worker)


class _FiniteWatch:
    """Checks each step's loss terms while the next step runs, so that the device never waits.

    A step's loss is computed before its update and says nothing about the updated weights: these
    are checked before they are evaluated or written.

    Args:
        run: `kseg.runs.Run`.
        state: dict from name to variable, everything that a checkpoint holds.

    Attributes:
        intact_step: int or None, the step of the newest checkpoint, known to be finite.
    """

    def __init__(self, run, state):
        self.intact_step = None
        self._run = run
        self._state = state
        self._pending = None
        self._values = {}

    def check(self, step, logs):
        before, self._pending = self._pending, (step, logs)
        self._look(before)

    def flush(self):
        """Checks the newest step, too, and returns its values."""
        before, self._pending = self._pending, None
        self._look(before)
        return dict(self._values)

    def check_weights(self, step):
        """Checks all weights, moving statistics, momenta and banks; all workers must call it."""
        if broken := describe_non_finite(self._state):
            raise NonFiniteWeightsError(
                f"The weights must stay finite. After step {step} {broken} are not{self._way_out()}"
                if step
                else f"The initial weights must be finite. {broken} are not. Look at model.weights "
                "and model.backbone.weights"
            )

    def _look(self, pending):
        if pending is None:
            return
        step, logs = pending
        self._values = {name: float(value) for name, value in logs.items()}
        broken = [name for name, value in self._values.items() if not np.isfinite(value)]
        if broken:
            term = next((name for name in broken if name != "loss"), "loss")
            state = describe_non_finite(self._state)
            weights = f", and so are {state}" if state else ""
            raise NonFiniteLossError(
                f"The loss must stay finite. At step {step} {term} is {self._values[term]}"
                f"{weights}{self._way_out()}"
            )

    def _way_out(self):
        lower = "Lower optimizer.learning_rate or set train.clip_norm"
        if self.intact_step is None:
            return f" (no checkpoint yet). {lower}"
        file = self._run.path / "checkpoints" / step_file(self.intact_step)
        return (
            f" (the checkpoint of step {self.intact_step} is intact). {lower}, with --restart, or "
            f"in a new run from these weights: --run {self._run.path}_lower --set "
            f"model.weights={file}"
        )


class _StopSignals:
    """Turns SIGINT and SIGTERM into a flag; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received = False
        self._before = {}

    def __enter__(self):
        waiting.watch_signals()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Outside the main thread (ValueError) signals are left to the caller.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step", file=sys.stderr, flush=True)
