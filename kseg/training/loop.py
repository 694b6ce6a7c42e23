"""The training loop; saving, checks for NaN, evaluation and stopping have their own modules."""

from kseg import waiting
from kseg.progress import Progress
from kseg.runs import checkpoints, step_file
from kseg.runs.lock import hold
from kseg.training.build import build_trainer
from kseg.training.callbacks import Callbacks, build_callbacks
from kseg.training.distribution import anywhere, build_strategy, use_xla
from kseg.training.evaluating import Evaluating
from kseg.training.initialization import load_pretrained
from kseg.training.profiling import Profiling
from kseg.training.reporting import TensorBoard, TrainingProgress
from kseg.training.saving import Saving
from kseg.training.stopping import Stopping
from kseg.training.trainer import build_step
from kseg.training.watching import FiniteWatch


def train(
    run, training_batches, evaluation_batches, *, strategy=None, cluster=None, callbacks=None
):
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
        callbacks: `kseg.training.callbacks.Callbacks`, or None: those of `train.callbacks`.

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
    batches = training_batches, evaluation_batches
    if cluster is not None and not cluster.is_chief:
        return _train(run, *batches, strategy, cluster, None, Callbacks())
    with hold(run.path) as lock:
        callbacks = build_callbacks(run.config) if callbacks is None else callbacks
        return _train(run, *batches, strategy, cluster, lock, callbacks)


def _train(run, training_batches, evaluation_batches, strategy, cluster, lock, callbacks):
    """Trains under the lock of the run's folder, which is None on workers other than the chief."""
    config = run.config
    settings = config.train
    last_step = settings.total_steps
    strategy = strategy or build_strategy(settings.devices)
    is_chief = cluster is None or cluster.is_chief
    jit_compile = use_xla(settings.jit_compile, strategy)
    with Progress(
        f"building {config.model.head.name} on {config.model.backbone.name}", shown=is_chief
    ):
        trainer = build_trainer(run, strategy)
    state = checkpoints.training_variables(trainer)
    saving = Saving(run, state, lock)
    watch = FiniteWatch(run, state, saving)
    step = saving.restore()
    if step is None:
        step = 0
        with Progress("loading pretrained weights", shown=is_chief):
            saving.initial_weights = load_pretrained(trainer.segmenter, config.model)
        watch.check_weights(0)
    evaluate = Evaluating(run, trainer, evaluation_batches, strategy, cluster)
    board = TensorBoard(run.path / "tensorboard", run.classes) if is_chief else None
    progress = TrainingProgress(last_step, config.data.batch_size, quiet=not is_chief)
    train_step = build_step(trainer, strategy, jit_compile=jit_compile)
    batches = iter(_distributed(training_batches, step, strategy, cluster))
    profiling = Profiling(run.path / "tensorboard/train", settings.profile if is_chief else None)
    is_over = saving.patience.is_over
    if is_over:
        progress.line(saving.patience.describe(step))
    callbacks.on_start(run, step)
    with Stopping(strategy, cluster) as stopping, profiling:
        while step < last_step and not is_over:
            step += 1
            is_last = step == last_step
            profiling.before(step)
            logs = _take_step(train_step, batches, progress)
            profiling.after(step, logs)
            progress.step_done()
            watch.check(step, logs)
            if step % settings.log_every == 0 or is_last or progress.is_first:
                values = _report(step, watch, trainer, progress)
                if is_chief:
                    board.scalars(step, values)
                callbacks.on_log(step, values)
            evaluation_due = step % settings.evaluate_every == 0 or is_last
            stop_due = stopping.is_due(step)
            checkpoint_due = step % settings.checkpoint_every == 0 or is_last or stop_due
            if evaluation_due or checkpoint_due:
                watch.flush()
                watch.check_weights(step)
            if evaluation_due:
                evaluate.update()
                if is_chief:
                    evaluation = evaluate(step, saving=saving, board=board, progress=progress)
                    callbacks.on_evaluation(step, evaluation)
                is_over = saving.patience.is_over
                if cluster and settings.patience:  # Only the chief counts evaluations.
                    is_over = anywhere(strategy, is_over)
            if checkpoint_due or is_over:
                saving.save(step, progress)
                callbacks.on_checkpoint(step, run.path / "checkpoints" / step_file(step))
            if is_over and not is_last and is_chief:
                progress.line(saving.patience.describe(step))
            if stop_due and not is_last and not is_over:
                stopping.stop(step)
    if is_chief:
        board.close()
    result = {
        "step": step,
        "best_mean_iou": saving.best["mean_iou"],
        "best_step": saving.best["step"],
        "initial_weights": saving.initial_weights,
    }
    callbacks.on_end(result)
    return result


def _take_step(train_step, batches, progress):
    """Takes a training step on the next batch; the first one compiles, which is announced."""
    if not progress.is_new:
        return train_step(waiting.next_batch(batches))
    with progress.working("compiling the training step"):
        return train_step(waiting.next_batch(batches))


def _report(step, watch, trainer, progress):
    """Prints the progress line of a step; returns its losses, learning rate and speed."""
    values = watch.flush()
    values["learning_rate"] = float(trainer.optimizer.learning_rate)
    return values | progress.report(step, values, trainer.term_weights(step - 1))


def _distributed(training_batches, step, strategy, cluster):
    """Builds the distributed data set of training batches from a start step on."""
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
