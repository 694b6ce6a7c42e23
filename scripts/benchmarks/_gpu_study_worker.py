"""The process of one arm of `gpu_study.py`: compiles once, runs seed after seed."""

import concurrent.futures
import contextlib
import copy
import functools
import importlib.metadata
import json
import pathlib
import platform
import sys
import threading
import time

import _device_data
import jax
import jax.numpy as jnp
import keras
import numpy as np

from kseg import config as config_module
from kseg.analysis.features import FeatureCollector
from kseg.backbones import BACKBONES
from kseg.backbones.efficientnet_lite import build_efficientnet_lite
from kseg.classes import Classes
from kseg.evaluation.image_counts import ImageCounts, iou_of, mean_over_classes
from kseg.layers import resize_labels
from kseg.losses.cross_entropy import logits_like
from kseg.runs import checkpoints
from kseg.segmenters import segmenter_from_config
from kseg.training.build import (
    build_distortion,
    build_losses,
    build_objectives,
    build_schedule,
    build_updates,
)
from kseg.training.freezing import freeze
from kseg.training.initialization import load_pretrained
from kseg.training.jax_trainer import JaxTrainer
from kseg.training.learning_rate_factors import learning_rate_factors, parts_of

_BATCH = 8  # Images of an evaluation batch.
_PRINTING = threading.Lock()


class Worker:
    """Runs the jobs of a specification, see `gpu_study.py`."""

    def __init__(self, spec):
        self.spec = spec
        self.device = jax.devices()[0]
        if spec["toy"]:
            BACKBONES["efficientnet_lite0"] = functools.partial(
                build_efficientnet_lite,
                channels=(4,) * 7,
                repeats=(1,) * 7,
                stem_channels=4,
                top_channels=8,
            )
        data = spec["data"]
        splits = {
            split: {
                key: np.load(pathlib.Path(data["folder"]) / f"{split}-{key}.npy")
                for key in ("images", "labels", "sizes")
            }
            for split in ("train", "val")
        }
        ids = json.loads((pathlib.Path(data["folder"]) / "val-ids.json").read_text())
        self.classes = Classes(
            names=data["class_names"],
            palette=[[0, 0, 0]] * len(data["class_names"]),
            **_occurrence(splits["train"]["labels"], len(data["class_names"])),
        )
        self.val = _device_data.Split(ids=ids, **splits["val"])
        self.val_parts = [
            (numbers, *map(self._on_device, _batches(images, labels)))
            for numbers, images, labels in _device_data.buckets(self.val)
        ]
        self.train = {key: self._on_device(value) for key, value in splits["train"].items()}
        self.pool = concurrent.futures.ThreadPoolExecutor(1)

    def _on_device(self, array):
        return jax.device_put(array, self.device)

    def run(self):
        """Runs all jobs until the deadline."""
        self.programs, self.pending, self.failed = {}, [], False
        self.seconds = 0.0  # Of the slowest run, without building and compiling.
        for job in self.spec["jobs"]:
            if "candidates" in job:
                self._follow_protocol(job)
                continue
            for seed in job["seeds"]:
                self._train(job["name"], job["config"], seed, first=seed == job["seeds"][0])
        for future in self.pending:
            future.result()
        return int(self.failed)

    def _train(self, name, config, seed, *, first=False):
        """Trains one seed of a config.

        Returns:
            float, the mean IoU of the last step; None where there was no time, or it failed.
        """
        experiment = config_module.parse(copy.deepcopy(config), source=name)
        key = _static_key(experiment)
        if time.time() > self.spec["deadline"]:
            _say(f"{name} seed {seed}: no time left")
            return None
        start = time.time()
        if key not in self.programs:
            self.programs.clear()  # Compiled programs of other settings, and their constants.
            self.programs[key] = Program(self, experiment)
        program, middle = self.programs[key], time.time()
        try:
            future, score = program.run(name, experiment, seed, config=config, first=first)
        except _StopRunError as error:
            self.failed |= error.is_fault
            _say(f"{name} seed {seed}: {error}")
            return None
        self.pending.append(future)
        self.seconds = max(self.seconds, time.time() - middle - program.compiling)
        program.compiling = 0.0
        _say(f"{name} seed {seed}: {time.time() - start:.1f} s in all")
        return score

    def _follow_protocol(self, job):
        """Tunes on the tuning seeds, then trains the best candidate on the seeds of the study."""
        candidates = job["candidates"]
        scores = {name: [] for name in candidates}
        for seed in job["tuning_seeds"]:
            of_seed = {}
            for name, config in candidates.items():
                runs = len(candidates) - len(of_seed) + len(job["seeds"])
                if time.time() + runs * self.seconds > self.spec["deadline"]:
                    print(f"{job['arm']}: no time to tune {name} on seed {seed}", flush=True)
                    break
                of_seed[name] = self._train(f"{job['arm']}.{name}", config, seed)
            if len(of_seed) < len(candidates):
                break
            if None not in of_seed.values():
                for name, score in of_seed.items():
                    scores[name].append(score)
        means = {name: float(np.mean(values)) for name, values in scores.items() if values}
        chosen = max(means, key=means.get) if means else next(iter(candidates))
        _say(f"{job['arm']}: {means} -> {chosen}")
        for seed in [*job["seeds"], *job["more_seeds"]]:
            if seed in job["more_seeds"] and time.time() + self.seconds > self.spec["deadline"]:
                break
            first = seed == job["seeds"][0]
            self._train(job["arm"], candidates[chosen], seed, first=first)

    def probe(self):
        """Times both ways to compute the network's depthwise convolutions, and prints them."""
        experiment = config_module.parse(self.spec["jobs"][0]["config"], source="probe")
        keras.config.set_dtype_policy(experiment.train.precision)
        with jax.default_device(jax.devices("cpu")[0]):
            segmenter = segmenter_from_config(
                experiment.model, len(self.classes), precision=experiment.train.precision
            )
        found = _depthwise_calls(segmenter, experiment.data)
        if not found:
            return
        times = {}
        for implementation in ("grouped", "shifted"):
            times[implementation] = _time_depthwise(found, implementation)
        _say("@depthwise " + json.dumps(times))


class _StopRunError(Exception):
    """A run that cannot be finished."""

    def __init__(self, message, *, is_fault):
        super().__init__(message)
        self.is_fault = is_fault


class Program:
    """The compiled step and evaluation of settings that differ only in inputs."""

    def __init__(self, worker, experiment):
        self.worker = worker
        self.experiment = experiment
        data, steps = experiment.data, experiment.train.steps
        self.chunk = max(n for n in range(1, worker.spec["chunk"] + 1) if steps % n == 0)
        start = time.time()
        keras.config.set_dtype_policy(experiment.train.precision)
        self.trainer = self._build(experiment, experiment.seed)
        self.segmenter = self.trainer.segmenter
        _say(f"built in {time.time() - start:.1f} s")
        if worker.spec["depthwise"] != "auto":
            for layer in _depthwise_layers(self.segmenter):
                layer.implementation = worker.spec["depthwise"]
        distortion = self.trainer.distortion
        make_batch = functools.partial(
            _device_data.training_batch,
            crop_size=tuple(data.crop_size),
            scale_range=tuple(data.scale_range),
            flip=data.flip,
            num_draws=0 if distortion is None else distortion.NUM_DRAWS,
        )

        def many_steps(state, order, key, settings, train):
            schedule = build_schedule(
                experiment.schedule,
                learning_rate=settings["learning_rate"],
                steps=settings["steps"],
            )

            def one_step(state, indices):
                step = state["step"]
                batch = make_batch(train, indices, jax.random.fold_in(key, step))
                return self.trainer.step(
                    state,
                    batch,
                    schedule=schedule,
                    objective_weights=[_ramped(step, *ramp) for ramp in settings["ramps"]],
                )

            return jax.lax.scan(one_step, state, order)

        self._many_steps = jax.jit(many_steps, donate_argnums=0)
        self._look = jax.jit(self._evaluate_part)
        self._is_compiled = False
        self.compiling = 0.0  # Seconds that the next run spends on compiling.

    def _build(self, experiment, seed):
        """Builds the trainer of a seed on the host, with pretrained weights if there are any."""
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed)
        classes = self.worker.classes
        with jax.default_device(jax.devices("cpu")[0]):
            objectives = build_objectives(
                experiment.contrast,
                num_classes=len(classes),
                seed=seed,
                training_images=classes.training_images,
            )
            segmenter = segmenter_from_config(
                experiment.model,
                len(classes),
                precision=experiment.train.precision,
                projections=sorted({stage for o, _ in objectives for stage in o.stages}),
            )
            freeze(segmenter, experiment.model.freeze)
            optimizer = experiment.optimizer
            factors = learning_rate_factors(
                parts_of(segmenter), optimizer.learning_rate_factors, optimizer.layer_decay
            )
            trainer = JaxTrainer(
                segmenter,
                learning_rate_factors=factors,
                updates=build_updates(experiment.optimizer),
                schedule=build_schedule(
                    experiment.schedule,
                    learning_rate=experiment.optimizer.learning_rate,
                    steps=experiment.train.steps,
                ),
                losses=build_losses(
                    experiment.losses,
                    segmenter,
                    num_classes=len(classes),
                    training_pixels=classes.training_pixels,
                ),
                objectives=objectives,
                clip_norm=experiment.train.clip_norm,
                distortion=build_distortion(experiment.data),
            )
            model = experiment.model
            if self.worker.spec["weights"] and not self.worker.spec.get("probe"):
                backbone = model.backbone.model_copy(
                    update={"weights": self.worker.spec["weights"]}
                )
                model = model.model_copy(update={"backbone": backbone})
            with contextlib.redirect_stdout(None):
                load_pretrained(segmenter, model)
        return trainer

    def _initial_state(self, experiment, seed):
        with jax.default_device(jax.devices("cpu")[0]):
            state = self._build(experiment, seed).initial_state()
        return jax.device_put(state, self.worker.device)

    def run(self, name, experiment, seed, *, config, first):
        """Trains and evaluates one seed; results are written while the next one trains.

        Args:
            name: str, the arm of the result.
            experiment: `kseg.config.Experiment`.
            seed: int.
            config: dict, the experiment as it was written.
            first: bool, whether the weights are kept, if those of this arm are asked for.

        Returns:
            `(future, score)`: future of None; mean IoU of the last step.
        """
        spec = self.worker.spec
        state = self._initial_state(experiment, seed)
        steps, batch_size = experiment.train.steps, experiment.data.batch_size
        order = _device_data.sample_order(
            seed, len(self.worker.train["images"]), steps * batch_size
        ).reshape(-1, self.chunk, batch_size)
        settings = {
            "learning_rate": np.float32(experiment.optimizer.learning_rate),
            "steps": np.float32(steps),
            "ramps": [
                tuple(np.float32(x) for x in (o.weight, o.start_step, o.warmup_steps))
                for o in experiment.contrast
            ],
        }
        inputs = (jax.random.key(seed), settings, self.worker.train)
        if not self._is_compiled:
            self._is_compiled = True
            start = time.time()
            # Steps on a copy: ahead-of-time compilation loses hoisted constants (JAX 0.11).
            _, of_chunk = self._many_steps(jax.tree.map(jnp.copy, state), order[0], *inputs)
            jax.block_until_ready(of_chunk)
            middle = time.time()
            self._evaluate(state)
            self.compiling = time.time() - start
            _say(f"compiled in {middle - start:.1f} s, evaluation {time.time() - middle:.1f} s")
        chunks = len(order)
        looks = {round((i + 1) * chunks / spec["evaluations"]) for i in range(spec["evaluations"])}
        looks |= {chunks}
        start, start_cpu = time.time(), time.process_time()
        logs, evaluations = [], []
        for number in range(chunks):
            state, of_chunk = self._many_steps(state, order[number], *inputs)
            logs.append({name: np.asarray(value) for name, value in of_chunk.items()})
            if not np.isfinite(logs[-1]["loss"]).all():
                raise _StopRunError("the loss is not finite", is_fault=True)
            if time.time() > spec["deadline"]:
                raise _StopRunError("the time is over", is_fault=False)
            if number + 1 in looks:
                counts, seen = self._evaluate(state)
                evaluations.append(_scores(counts, (number + 1) * self.chunk))
        result = {
            "study": spec["study"],
            "arm": name,
            "seed": seed,
            "backend": "jax",
            "device": self.worker.device.device_kind,
            "commit": spec["commit"],
            "environment": _environment(),
            "steps": steps,
            "batch_size": batch_size,
            "last": evaluations[-1],
            "best": max(evaluations, key=lambda scores: scores["mean_iou"]),
            "evaluations": [[e["step"], e["mean_iou"]] for e in evaluations],
            "losses": _last_losses(logs),
            "seconds": time.time() - start,
            "cpu_seconds": time.process_time() - start_cpu,
            "peak_memory_mb": (self.worker.device.memory_stats() or {}).get("peak_bytes_in_use", 0)
            / 2**20,
        }
        weights = None
        if first and name in spec["save_weights"]:
            keep = ("weights", "statistics")
            weights = {key: [np.asarray(v) for v in state[key]] for key in keep}
        finish = (self._finish, result, config, counts, seen, weights)
        return self.worker.pool.submit(*finish), result["last"]["mean_iou"]

    def _finish(self, result, config, counts, seen, weights):
        """Computes the features and writes the files and the result line of a run."""
        spec = self.worker.spec
        if spec["features"] and "." not in result["arm"]:  # Not of a tuning run.
            result["features"] = self._features(seen)
        name = f"{result['arm']}-{result['seed']}"
        path = pathlib.Path(spec["scratch"]) / f"counts-{name}.npz"
        ImageCounts(self.worker.val.ids, counts).save(path)
        if weights is not None:
            variables = self.trainer.variables()
            arrays = {
                f"model/{variable.path}": value.astype("float16")
                for key in weights
                for variable, value in zip(variables[key], weights[key], strict=True)
                if value.dtype == np.float32
            }
            meta = {"step": result["steps"], "mean_iou": result["last"]["mean_iou"]}
            checkpoints.save(pathlib.Path(spec["output"]) / f"weights-{name}.npz", arrays, meta)
        message = {"line": result, "config": config, "counts": str(path)}
        _say(f"@result {json.dumps(message)}")

    def _features(self, seen):
        collector = None
        for features, labels in seen:
            features, labels = np.asarray(features, "float32"), np.asarray(labels)
            dim = features.shape[-1]
            if collector is None:
                collector = FeatureCollector(len(self.worker.classes), dim)
            for image, of_image in zip(
                features.reshape(-1, *features.shape[-3:]),
                labels.reshape(-1, *labels.shape[-2:]),
                strict=True,
            ):
                collector.add(image.reshape(-1, dim), of_image.reshape(-1))
        found = collector.statistics()
        near = found.neighborhood_uniformity
        values = {
            "alignment": found.alignment,
            "uniformity": found.uniformity,
            "uniformity_3": near[3],
            "uniformity_5": near[5],
        }
        return {name: None if np.isnan(value) else value for name, value in values.items()}

    def _evaluate(self, state):
        """Evaluates a state on the validation images.

        Returns:
            `(counts, seen)`: int64 array as `ImageCounts.pixels`, and for each part of the split
            device arrays of unit features and their labels.
        """
        weights = {name: state[name] for name in ("weights", "statistics")}
        found = [self._look(weights, *arrays) for _, *arrays in self.worker.val_parts]
        counts = np.zeros((len(self.worker.val.ids), 3, len(self.worker.classes)), "int64")
        for (numbers, *_), (of_part, _, _) in zip(self.worker.val_parts, found, strict=True):
            of_part = np.asarray(of_part).reshape(-1, *counts.shape[1:])
            counts[numbers] = of_part[: len(numbers)]
        return counts, [features for _, *features in found]

    def _evaluate_part(self, weights, images, labels):
        num_classes = len(self.worker.classes)
        variables = self.trainer.variables()
        mapping = [
            pair for name in weights for pair in zip(variables[name], weights[name], strict=True)
        ]

        def one(batch):
            images, labels = batch
            with keras.StatelessScope(state_mapping=mapping):
                outputs = self.segmenter(images, training=False)
                logits = logits_like(labels, outputs["logits"])
                features = outputs["features"]
                feature_labels = resize_labels(labels, *features.shape[1:3])
            labels = labels.astype("int32")
            valid = labels < num_classes
            predicted = jnp.where(valid, jnp.argmax(logits, axis=-1), num_classes)
            each = jnp.arange(num_classes)
            truth = labels[..., None] == each
            found = predicted[..., None] == each
            counts = [jnp.sum(x, axis=(1, 2), dtype="int32") for x in (truth & found, truth, found)]
            features = features.astype("float32")
            norm = jnp.sqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True))
            features = features / jnp.maximum(norm, 1e-6)
            return jnp.stack(counts, axis=1), features, feature_labels

        return jax.lax.map(one, (images, labels))


def _say(text):
    """Prints a line as a whole, from any thread."""
    with _PRINTING:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _batches(images, labels):
    """Divides images into batches; the last is padded with images that are ignored."""
    missing = -len(images) % _BATCH
    images = np.concatenate([images, np.repeat(images[:1], missing, axis=0)])
    labels = np.concatenate([labels, np.full((missing, *labels.shape[1:]), 255, "uint8")])
    return (x.reshape(-1, _BATCH, *x.shape[1:]) for x in (images, labels))


def _occurrence(labels, num_classes):
    """Counts training images and pixels of each class, as in `Classes`."""
    counts = [np.bincount(image.reshape(-1), minlength=256)[:num_classes] for image in labels]
    counts = np.stack(counts)
    return {
        "training_images": (counts > 0).sum(axis=0).tolist(),
        "training_pixels": counts.sum(axis=0).tolist(),
    }


def _ramped(step, weight, start, warmup):
    """Computes `kseg.training.schedules.Ramp` from inputs of the program."""
    since = step.astype("float32") - start
    rise = jnp.where(warmup > 0, since / jnp.maximum(warmup, 1.0), since + 1.0)
    return weight * jnp.clip(rise, 0.0, 1.0)


def _static_key(experiment):
    """Returns the settings that the compiled program depends on, as text."""
    values = experiment.model_dump(mode="json")
    for key in ("name", "seed"):
        del values[key]
    del values["optimizer"]["learning_rate"], values["train"]["steps"]
    for objective in values["contrast"]:
        for key in ("weight", "start_step", "warmup_steps"):
            del objective[key]
    # A run of another number of steps takes the same program if the chunk is the same.
    return json.dumps(values, sort_keys=True)


def _scores(counts, step):
    iou = iou_of(counts.sum(axis=0))
    return {
        "step": step,
        "mean_iou": float(mean_over_classes(iou)),
        "class_iou": [None if np.isnan(value) else float(value) for value in iou],
    }


def _last_losses(logs):
    joined = {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}
    count = max(len(joined["loss"]) // 10, 1)
    return {name: float(values[-count:].mean()) for name, values in joined.items()}


def _environment():
    versions = {"python": platform.python_version()}
    for package in ("kseg", "keras", "jax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _depthwise_layers(segmenter):
    found = [layer for layer in segmenter._flatten_layers() if hasattr(layer, "implementation")]
    return [layer for layer in found if isinstance(layer, keras.layers.DepthwiseConv2D)]


def _depthwise_calls(segmenter, data):
    """Lists the depthwise convolutions of a training step as `(layer, input shape)`."""
    calls = []
    layers = _depthwise_layers(segmenter)
    if not layers:
        return calls
    kind = type(layers[0])
    original = kind.call

    def call(self, inputs):
        calls.append((self, inputs.shape))
        return original(self, inputs)

    kind.call = call
    try:
        shape = (data.batch_size, *data.crop_size, 3)
        jax.eval_shape(
            lambda images: segmenter(images, training=False)["logits"],
            jax.ShapeDtypeStruct(shape, "uint8"),
        )
    finally:
        kind.call = original
    return calls


def _time_depthwise(calls, implementation, rounds=20):
    """Times the forward and backward passes of depthwise convolutions."""
    rng = np.random.default_rng(0)
    dtype = calls[0][0].compute_dtype
    inputs = [jnp.asarray(rng.normal(size=shape), dtype) for _, shape in calls]
    kernels = [jnp.asarray(layer.kernel.value) for layer, _ in calls]

    def total(inputs, kernels):
        loss = 0.0
        for (layer, _), x, kernel in zip(calls, inputs, kernels, strict=True):
            before, layer.implementation = layer.implementation, implementation
            with keras.StatelessScope(state_mapping=[(layer.kernel, kernel)]):
                loss += jnp.sum(jnp.square(layer(x.astype(dtype)).astype("float32")))
            layer.implementation = before
        return loss

    step = jax.jit(jax.grad(total, argnums=(0, 1)))
    jax.block_until_ready(step(inputs, kernels))
    start = time.time()
    for _ in range(rounds):
        found = step(inputs, kernels)
    jax.block_until_ready(found)
    return (time.time() - start) / rounds
