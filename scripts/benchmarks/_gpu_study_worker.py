"""The process of one arm of `gpu_study.py`: compiles once, runs seed after seed."""

import concurrent.futures
import contextlib
import copy
import fcntl
import functools
import importlib.metadata
import json
import pathlib
import platform
import sys
import tempfile
import threading
import time

import _device_data
import _matrix_products
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


def use_toy_backbone():
    """Makes EfficientNet-Lite0 tiny."""
    BACKBONES["efficientnet_lite0"] = functools.partial(
        build_efficientnet_lite,
        channels=(4,) * 7,
        repeats=(1,) * 7,
        stem_channels=4,
        top_channels=8,
    )


class Worker:
    """Runs the jobs of a specification, see `gpu_study.py`."""

    def __init__(self, spec):
        self.spec = spec
        self.device = jax.devices()[0]
        if spec["toy"]:
            use_toy_backbone()
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
        self.seconds = 0.0  # Of the slowest batch of runs, without building and compiling.
        for job in self.spec["jobs"]:
            if "candidates" in job:
                self._follow_protocol(job)
            else:
                lanes = [_Lane(job["name"], job["config"], seed) for seed in job["seeds"]]
                self._train_all(lanes, keep=lanes[:1])
        for future in self.pending:
            future.result()
        return int(self.failed)

    def _train_all(self, lanes, *, keep=()):
        """Trains runs, as many at once as the specification says.

        Args:
            lanes: list of `_Lane`.
            keep: those whose weights are kept, if those of their arm are asked for.

        Returns:
            list of float, the mean IoU of the last step of each; None where there was no time or
            the run failed.
        """
        groups = {}
        for lane in lanes:
            groups.setdefault(lane.static_key, []).append(lane)
        scores = {}
        for group in groups.values():
            for first in range(0, len(group), self.spec["stack"]):
                batch = group[first : first + self.spec["stack"]]
                scores.update(zip(map(id, batch), self._train(batch, keep), strict=True))
        return [scores[id(lane)] for lane in lanes]

    def _train(self, lanes, keep):
        names = ", ".join(str(lane) for lane in lanes)
        if time.time() + self.seconds > self.spec["deadline"]:
            _say(f"{names}: no time left")
            return [None] * len(lanes)
        start, key = time.time(), lanes[0].static_key
        if key not in self.programs:
            self.programs.clear()  # Compiled programs of other settings, and their constants.
            self.programs[key] = Program(self, lanes[0].experiment)
        program = self.programs[key]
        try:
            futures, scores = program.run(lanes, keep)
        except _StopRunError as error:
            self.failed |= error.is_fault
            _say(f"{names}: {error}")
            return [None] * len(lanes)
        self.failed |= None in scores
        self.pending += futures
        self.seconds = max(self.seconds, program.seconds)
        _say(f"{names}: {time.time() - start:.1f} s in all")
        return scores

    def _follow_protocol(self, job):
        """Tunes on the tuning seeds, then trains the best candidate on the seeds of the study."""
        candidates = job["candidates"]
        lanes = [
            _Lane(f"{job['arm']}.{name}", config, seed)
            for seed in job["tuning_seeds"]
            for name, config in candidates.items()
        ]
        scores = {name: [] for name in candidates}
        for lane, score in zip(lanes, self._train_all(lanes), strict=True):
            scores[lane.name.removeprefix(f"{job['arm']}.")].append(score)
        means = {name: float(np.mean(of)) for name, of in scores.items() if None not in of}
        chosen = max(means, key=means.get) if means else next(iter(candidates))
        _say(f"{job['arm']}: {means} -> {chosen}")
        lanes, more = (
            [_Lane(job["arm"], candidates[chosen], seed) for seed in job[key]]
            for key in ("seeds", "more_seeds")
        )
        self._train_all([*lanes, *more], keep=lanes[:1])

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


class _Lane:
    """One run: an arm's name, its config (JSON values), and a seed."""

    def __init__(self, name, config, seed):
        self.name, self.config, self.seed = name, config, seed
        self.experiment = config_module.parse(copy.deepcopy(config), source=name)
        self.static_key = _static_key(self.experiment)

    def __str__(self):
        return f"{self.name} seed {self.seed}"


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
        self.trainer = self._build(experiment)
        self.segmenter = self.trainer.segmenter
        self._load_initial_weights(experiment.model)
        _say(f"built in {time.time() - start:.1f} s")
        self.stack = worker.spec["stack"]
        if self.stack > 1:
            _matrix_products.install(self.segmenter)
        elif worker.spec["depthwise"] != "auto":
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

        many_steps = self._over_lanes(many_steps, shared=1)
        self.many_steps = jax.jit(many_steps, donate_argnums=0)
        self._look = jax.jit(self._over_lanes(self._evaluate_part, shared=2))
        self._is_compiled = False
        self.seconds = self.cpu_seconds = 0.0  # Of the last batch of runs, without compiling.
        self.batches = 0

    def _over_lanes(self, function, *, shared):
        """Applies a function to arguments with a leading axis of lanes, but for the last ones."""
        if self.stack > 1:

            def all_lanes(*arguments):
                axes = [0] * (len(arguments) - shared) + [None] * shared
                return jax.vmap(function, in_axes=axes)(*arguments)

        else:

            def all_lanes(*arguments):
                own = jax.tree.map(lambda x: x[0], arguments[:-shared])
                return jax.tree.map(lambda x: x[None], function(*own, *arguments[-shared:]))

        return all_lanes

    def _build(self, experiment):
        """Builds the trainer on the host."""
        keras.utils.clear_session(free_memory=False)
        classes = self.worker.classes
        with jax.default_device(jax.devices("cpu")[0]):
            objectives = build_objectives(
                experiment.contrast,
                num_classes=len(classes),
                seed=experiment.seed,
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
            return JaxTrainer(
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

    def _load_initial_weights(self, model):
        """Loads pretrained weights if there are any, and finds out which ones seeds must draw."""
        if self.worker.spec["weights"] and not self.worker.spec.get("probe"):
            backbone = model.backbone.model_copy(update={"weights": self.worker.spec["weights"]})
            model = model.model_copy(update={"backbone": backbone})
        random = [np.asarray(v) for v in self.segmenter.trainable_variables]
        with jax.default_device(jax.devices("cpu")[0]), contextlib.redirect_stdout(None):
            load_pretrained(self.segmenter, model)
            self._template = jax.tree.map(np.asarray, self.trainer.initial_state())
        self._initializers = _initializers(self.segmenter, random, self._template["weights"])

    def initial_state(self, experiment, seed):
        """Draws the initial state of a seed: host arrays.

        Building the network again would draw it, too, but takes seconds.
        """
        rng = np.random.default_rng([seed, 50_411])
        state = dict(self._template)
        state["weights"] = list(state["weights"])
        with jax.default_device(jax.devices("cpu")[0]):
            for i, initializer in self._initializers.items():
                config = {**initializer.get_config(), "seed": int(rng.integers(2**31))}
                drawn = type(initializer).from_config(config)(state["weights"][i].shape)
                state["weights"][i] = np.asarray(drawn)
            objectives = build_objectives(
                experiment.contrast,
                num_classes=len(self.worker.classes),
                seed=seed,
                training_images=self.worker.classes.training_images,
            )
            for objective, _ in objectives:
                objective.prepare(self.segmenter.output)
        state["objectives"] = [np.asarray(v) for o, _ in objectives for v in o.variables]
        variables = self.trainer.variables()["statistics"]
        state["statistics"] = [
            np.array([rng.integers(2**31), 0], value.dtype)
            if variable.name == "seed_generator_state"
            else value
            for variable, value in zip(variables, state["statistics"], strict=True)
        ]
        return state

    def _stacked(self, values):
        """Stacks trees of arrays, repeating the last one if there are too few."""
        values = [*values, *values[-1:] * (self.stack - len(values))]
        return jax.tree.map(lambda *of_lanes: np.stack(of_lanes), *values)

    def run(self, lanes, keep):
        """Trains and evaluates runs at once; their results are written while the next ones train.

        Args:
            lanes: list of at most `stack` `_Lane`, whose settings have the same static key.
            keep: list of `_Lane` whose weights are kept, if those of their arm are asked for.

        Returns:
            `(futures, scores)`: list of futures of None; list of the mean IoU of the last step of
            each lane, None where its loss was not finite.
        """
        state, order, inputs = self._prepare(lanes)
        if not self._is_compiled:
            self._is_compiled = True
            start = time.time()
            # Steps on a copy: ahead-of-time compilation loses hoisted constants (JAX 0.11).
            _, of_chunk = self.many_steps(jax.tree.map(jnp.copy, state), order[:, 0], *inputs)
            jax.block_until_ready(of_chunk)
            middle = time.time()
            if self.worker.spec["profile"]:
                self._profile(lanes[0].name, state, order[:, 0], *inputs)
            self._evaluate(state)
            _say(f"compiled in {middle - start:.1f} s, evaluation {time.time() - middle:.1f} s")
        with _slot(self.worker.spec, self.batches):
            if time.time() + self.seconds > self.worker.spec["deadline"]:
                raise _StopRunError("no time left", is_fault=False)
            state, logs, evaluations = self._train(state, order, inputs)
        self.batches += 1
        futures, scores = [], []
        for number, lane in enumerate(lanes):
            if not np.isfinite(logs["loss"][number]).all():
                _say(f"{lane}: the loss is not finite")
                scores.append(None)
                continue
            result = self._result(lane, number, logs, evaluations)
            result |= {key: result[key] / len(lanes) for key in ("seconds", "cpu_seconds")}
            scores.append(result["last"]["mean_iou"])
            weights = None
            if lane in keep and lane.name in self.worker.spec["save_weights"]:
                names = ("weights", "statistics")
                weights = {name: [np.asarray(v[number]) for v in state[name]] for name in names}
            _, counts, seen = evaluations[-1]
            seen = [tuple(array[number] for array in arrays) for arrays in seen]
            finish = (self._finish, result, lane.config, counts[number], seen, weights)
            futures.append(self.worker.pool.submit(*finish))
        return futures, scores

    def _profile(self, name, *arguments):
        """Writes the kernels of a step, and their milliseconds, to `kernels-<arm>.json`."""
        state, *others = arguments
        copies = [jax.tree.map(jnp.copy, state) for _ in range(2)]
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            jax.block_until_ready(self.many_steps(copies.pop(), *others))
            elapsed = 1e3 * (time.time() - start) / self.chunk
            with jax.profiler.trace(folder):
                jax.block_until_ready(self.many_steps(copies.pop(), *others))
            (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
            found = jax.profiler.ProfileData.from_file(str(file))
        kernels = {}
        for plane in found.planes:
            if plane.name.startswith("/device:"):
                for event in (event for line in plane.lines for event in line.events):
                    key = f"{dict(event.stats).get('hlo_op', '')} {event.name}"
                    count, duration = kernels.get(key, (0, 0.0))
                    kernels[key] = (count + 1, duration + event.duration_ns / 1e6)
        rows = sorted(([d / self.chunk, c / self.chunk, k] for k, (c, d) in kernels.items()))[::-1]
        path = pathlib.Path(self.worker.spec["output"]) / f"kernels-{name}.json"
        path.write_text(json.dumps({"step_ms": elapsed, "kernels": rows[:400]}, indent=0))
        busy = sum(row[0] for row in rows)
        _say(f"a step takes {elapsed:.2f} ms, its kernels {busy:.2f} ms")

    def _prepare(self, lanes):
        """Returns the initial state of a batch of runs, and the arguments of its steps.

        Returns:
            `(state, order, inputs)`: device arrays; int32 array `(lanes, chunks, steps, images)`,
            the images of each batch; tuple of the other arguments of `many_steps`.
        """
        states = [self.initial_state(lane.experiment, lane.seed) for lane in lanes]
        experiment, images = lanes[0].experiment, len(self.worker.train["images"])
        batch_size = experiment.data.batch_size
        samples = experiment.train.steps * batch_size
        order = [
            _device_data.sample_order(lane.seed, images, samples).reshape(
                -1, self.chunk, batch_size
            )
            for lane in lanes
        ]
        settings = self._stacked([_inputs(lane.experiment) for lane in lanes])
        keys = jax.vmap(jax.random.key)(self._stacked([np.uint32(lane.seed) for lane in lanes]))
        state = jax.device_put(self._stacked(states), self.worker.device)
        return state, self._stacked(order), (keys, settings, self.worker.train)

    def _train(self, state, order, inputs):
        """Takes all steps.

        Returns:
            `(state, logs, evaluations)`: dict of arrays `(lanes, steps)`; list of `(step, counts,
            seen)`, see `_evaluate`, the last one with the features.
        """
        spec, chunks = self.worker.spec, order.shape[1]
        looks = {round((i + 1) * chunks / spec["evaluations"]) for i in range(spec["evaluations"])}
        looks |= {chunks}
        start, start_cpu = time.time(), time.process_time()
        logs, evaluations = [], []
        for number in range(chunks):
            state, of_chunk = self.many_steps(state, order[:, number], *inputs)
            logs.append({name: np.asarray(value) for name, value in of_chunk.items()})
            if not np.isfinite(logs[-1]["loss"]).all(axis=1).any():
                raise _StopRunError("the loss is not finite", is_fault=True)
            if time.time() > spec["deadline"]:
                raise _StopRunError("the time is over", is_fault=False)
            if number + 1 in looks:
                counts, seen = self._evaluate(state)
                if number + 1 < chunks:
                    seen = None
                evaluations.append(((number + 1) * self.chunk, counts, seen))
        self.seconds, self.cpu_seconds = time.time() - start, time.process_time() - start_cpu
        joined = {name: np.concatenate([log[name] for log in logs], axis=1) for name in logs[0]}
        return state, joined, evaluations

    def _result(self, lane, number, logs, evaluations):
        """Returns the result line of a run: JSON values; times are those of all runs at once."""
        of_lane = [_scores(counts[number], step) for step, counts, _ in evaluations]
        memory = (self.worker.device.memory_stats() or {}).get("peak_bytes_in_use", 0)
        return {
            "study": self.worker.spec["study"],
            "arm": lane.name,
            "seed": lane.seed,
            "backend": "jax",
            "device": self.worker.device.device_kind,
            "commit": self.worker.spec["commit"],
            "environment": _environment(),
            "steps": lane.experiment.train.steps,
            "batch_size": lane.experiment.data.batch_size,
            "last": of_lane[-1],
            "best": max(of_lane, key=lambda scores: scores["mean_iou"]),
            "evaluations": [[scores["step"], scores["mean_iou"]] for scores in of_lane],
            "losses": _last_losses({name: value[number] for name, value in logs.items()}),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "runs_at_once": self.stack,
            "peak_memory_mb": memory / 2**20,
        }

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
        """Evaluates the states of all lanes on the validation images.

        Returns:
            `(counts, seen)`: int64 array `(lanes, ...)` of arrays as `ImageCounts.pixels`; and for
            each part of the split device arrays of unit features and their labels.
        """
        weights = {name: state[name] for name in ("weights", "statistics")}
        found = [self._look(weights, *arrays) for _, *arrays in self.worker.val_parts]
        images = (len(self.worker.val.ids), 3, len(self.worker.classes))
        counts = np.zeros((self.stack, *images), "int64")
        for (numbers, *_), (of_part, *_) in zip(self.worker.val_parts, found, strict=True):
            of_part = np.asarray(of_part).reshape(self.stack, -1, *images[1:])
            counts[:, numbers] = of_part[:, : len(numbers)]
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
            if not self.worker.spec["features"]:
                return (jnp.stack(counts, axis=1),)
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
    count = max(len(logs["loss"]) // 10, 1)
    return {name: float(values[-count:].mean()) for name, values in logs.items()}


def example_arguments(program, images):
    """Returns arguments of `Program.many_steps` with the right shapes and dtypes.

    Args:
        program: `Program`.
        images: ints (images, rows, columns) of the training data.

    Returns:
        tuple of trees of host arrays.
    """
    experiment, stack = program.experiment, program.stack
    one = (program.initial_state(experiment, 0), _inputs(experiment))
    state, settings = jax.tree.map(lambda x: np.stack([x] * stack), one)
    order = np.zeros((stack, program.chunk, experiment.data.batch_size), "int32")
    keys = jax.vmap(jax.random.key)(np.zeros(stack, "uint32"))
    data = {
        "images": np.zeros((*images, 3), "uint8"),
        "labels": np.zeros(images, "uint8"),
        "sizes": np.zeros((images[0], 2), "int32"),
    }
    return state, order, keys, settings, data


def _inputs(experiment):
    """Returns the settings that are inputs of the compiled program."""
    return {
        "learning_rate": np.float32(experiment.optimizer.learning_rate),
        "steps": np.float32(experiment.train.steps),
        "ramps": [
            tuple(np.float32(x) for x in (o.weight, o.start_step, o.warmup_steps))
            for o in experiment.contrast
        ],
    }


def _initializers(segmenter, before, after):
    """Finds the random weights that no pretrained ones replaced.

    Args:
        segmenter: keras model.
        before, after: lists of arrays, the trainable weights before and after loading.

    Returns:
        dict from the position of a weight to its Keras initializer.
    """
    known = {}
    for layer in segmenter._flatten_layers():
        for name in ("kernel_initializer", "depthwise_initializer"):
            if getattr(layer, name, None) is not None and layer.built:
                known[id(layer.kernel)] = getattr(layer, name)
    found = {}
    for i, variable in enumerate(segmenter.trainable_variables):
        if np.ptp(before[i]) > 0 and np.array_equal(before[i], after[i]):
            if id(variable) not in known:
                raise ValueError(f"The initializer of the weight {variable.path!r} is not known")
            found[i] = known[id(variable)]
    return found


@contextlib.contextmanager
def _slot(spec, batch):
    """Waits until fewer than `spec["together"]` processes train: a lock file for each of them.

    Of those that wait, the one with the fewest batches so far is first, then the order of the arms.

    Args:
        spec: dict.
        batch: int, number of batches that this process has trained.
    """
    folder = pathlib.Path(spec["scratch"])
    ticket = folder / f"waiting-{batch:03d}-{spec['position']:03d}"
    ticket.touch()
    try:
        file = None
        while file is None:
            if time.time() > spec["deadline"]:
                raise _StopRunError("no time left", is_fault=False)
            if ticket == min(folder.glob("waiting-*")):
                file = _lock_one(folder, spec["together"])
            if file is None:
                time.sleep(0.05)
    finally:
        ticket.unlink()
    with file:
        yield


def _lock_one(folder, count):
    """Locks one of the files `slot-<number>`, and returns it; None if all are locked."""
    for number in range(count):
        file = (folder / f"slot-{number}").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            file.close()
    return None


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
