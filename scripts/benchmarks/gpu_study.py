"""A study on one GPU with JAX: trains and evaluates every arm and seed within minutes.

    python scripts/benchmarks/gpu_study.py --config configs/camvid_lite2_upernet.json \
        --source DATA/camvid --output results

The data set is decoded once and kept in GPU memory as bytes. Crops, mirroring and colors are drawn
inside the compiled step, and `lax.scan` runs many steps per call. Each arm has its own process and
is compiled once: seed, learning rate, number of steps and the weight, start and warm-up of an
objective are inputs of the compiled program. `--stack N` trains N runs of an arm at once, by
`jax.vmap` over their states; all convolutions are matrix products then (`_matrix_products.py`),
which need no search for the fastest kernel.

Writes `messages.jsonl` and `counts.zip`, which are extended after each run; `results.jsonl`, a line
for each arm and seed; `study.zip`, the same with settings and pixel counts, to be unpacked into a
folder of results of `scripts/study.py`; `weights-<arm>-<seed>.npz` for the arms of
`--save-weights`; `kernels-<arm>.json` with `--profile`; and `log.txt`. The same command with the
same output trains what is missing in it (with `--protocol`, everything again).

`--plan FILE` takes arms and seeds from a study's file (docs/studies.md) instead of the built-in
ones. `--tune FILE` runs settings other than those of the arms: a JSON list of
`{"name": ..., "arm": ..., "overrides": ["contrast.0.weight=0.2", ...], "seeds": [...]}`; `arm` is
`"cross_entropy"` by default, and `seeds` those of `--seeds`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["KERAS_BACKEND"] = "jax"  # Also in the director, which imports Keras indirectly.

ARMS = {
    "cross_entropy": ["contrast=[]"],
    "region_contrast": ['contrast=[{"name": "region_contrast"}]'],
    "multi_scale": ['contrast=[{"name": "multi_scale"}]'],
    "contextrast": ['contrast=[{"name": "contextrast"}]'],
    "pixel_contrast": ['contrast=[{"name": "pixel_contrast", "memory": "both"}]'],
}
# A schedule of seconds on a CPU; the worker makes the backbone tiny.
TOY = [
    'model={"backbone": {"name": "efficientnet_lite0"}, "head": {"name": "deeplabv3", '
    '"channels": 4, "aspp_channels": 4, "aux_channels": 4}, "embedding_dim": 8, '
    '"projector_layers": 1}',
    "data.crop_size=[32, 48]",
    "data.batch_size=2",
    "train.steps=2",
    "schedule.warmup_steps=1",
    "losses.cross_entropy.class_weights=null",
]
# XLA's flags for programs without convolutions.
WITHOUT_SEARCH = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
_GRACE = 8.0  # Seconds that a worker has to end on its own.


def main():
    arguments = _parse()
    if arguments.worker:
        return _work(json.loads(pathlib.Path(arguments.worker).read_text()))
    return _direct(arguments)


def _parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="config file that all arms share")
    parser.add_argument("--source", help="folder of the data set's files")
    parser.add_argument("--output", default="gpu_study", help="folder of the results")
    parser.add_argument("--plan", help="a study's file, instead of --config")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: of the plan, or 0 to 4")
    parser.add_argument(
        "--data-fingerprint",
        help="data.fingerprint in the settings of a study that these results join; default: a hash "
        "of the pixels",
    )
    parser.add_argument(
        "--weights-checksum", help="the same for the checksum of the initial weights"
    )
    parser.add_argument("--tune", help="file of named settings, run instead of the arms")
    parser.add_argument("--protocol", help="file: tuning on seeds of its own, then the study")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--chunk", type=int, default=100, help="steps in a compiled call")
    parser.add_argument("--stack", type=int, default=1, metavar="N", help="runs of an arm at once")
    parser.add_argument(
        "--together", type=int, default=5, metavar="N", help="arms that train at the same time"
    )
    parser.add_argument("--evaluations", type=int, default=3, help="evaluations of a run")
    parser.add_argument("--depthwise", choices=["auto", "grouped", "shifted"], default="auto")
    parser.add_argument("--no-features", action="store_true", help="no alignment and uniformity")
    parser.add_argument("--profile", action="store_true", help="write the time of each kernel")
    parser.add_argument("--save-weights", nargs="*", default=[], metavar="ARM")
    parser.add_argument("--weights", help="replaces model.backbone.weights of the config")
    parser.add_argument("--commit", help="commit of the source tree if there is no git")
    parser.add_argument("--cache", default=str(pathlib.Path(tempfile.gettempdir()) / "kseg_xla"))
    parser.add_argument("--time-limit", type=float, default=540.0, metavar="SECONDS")
    parser.add_argument("--toy", action="store_true", help="synthetic images, a tiny network, CPU")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker or arguments.toy:
        return arguments
    if not arguments.source or not (arguments.config or arguments.plan):
        parser.error("--source and --config or --plan are needed")
    return arguments


# The director: decodes the data, starts a process for each arm, gathers the results.


def _direct(arguments):
    start = time.time()
    output = pathlib.Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="gpu_study_"))
    if arguments.toy:
        _make_toy(arguments, scratch)

    def say(text):
        line = f"[{time.time() - start:6.1f}] {text}"
        print(line, flush=True)
        # A full disk must not end the thread that reads a worker's results.
        with contextlib.suppress(OSError), open(output / "log.txt", "a") as log:
            print(line, file=log)

    name, jobs = _protocol(arguments) if arguments.protocol else plan_jobs(arguments)
    data = _store_data(arguments, jobs[0]["config"]["data"]["dataset"], scratch)
    say(f"data: {data['summary']}")
    archive = _Archive(
        output,
        scratch / "study",
        arguments.data_fingerprint or data["fingerprint"],
        arguments.weights_checksum or _checksum(arguments.weights),
    )
    wanted = {(job["name"], seed) for job in jobs for seed in job["seeds"]}
    if not arguments.protocol:
        jobs = archive.unfinished(jobs)
    spec = {
        "data": data,
        "study": name,
        "chunk": arguments.chunk,
        "stack": arguments.stack,
        "together": arguments.together,
        "profile": arguments.profile,
        "evaluations": arguments.evaluations,
        "features": not (arguments.no_features or arguments.tune),
        "weights": arguments.weights,
        "save_weights": arguments.save_weights,
        "commit": arguments.commit or _commit(),
        "scratch": str(scratch),
        "depthwise": arguments.depthwise if arguments.stack == 1 else "shifted",
        "deadline": start + arguments.time_limit,
        "output": str(output),
        "toy": arguments.toy,
    }
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": arguments.cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUNBUFFERED": "1",
    }
    if arguments.stack > 1:
        environment["XLA_FLAGS"] = f"{WITHOUT_SEARCH} {os.environ.get('XLA_FLAGS', '')}"
    if arguments.toy:
        environment |= {"JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR")
    groups = {}
    for job in jobs:
        groups.setdefault(job["arm"], []).append(job)
    if spec["depthwise"] == "auto" and groups:
        probe = _start({**spec, "probe": True, "jobs": jobs[:1]}, scratch, "probe", environment)
        spec["depthwise"] = _choose_depthwise(probe, say, spec["deadline"])
    workers = {
        arm: _start({**spec, "jobs": of_arm, "position": position}, scratch, arm, environment)
        for position, (arm, of_arm) in enumerate(groups.items())
    }
    readers = [
        threading.Thread(target=_listen, args=(arm, process, say, archive))
        for arm, process in workers.items()
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(max(0.0, spec["deadline"] + _GRACE - time.time()))
    for process in workers.values():
        if process.poll() is None:
            process.kill()
    for reader in readers:
        reader.join()
    failed = [arm for arm, process in workers.items() if process.returncode]
    missing = sorted(wanted - archive.finished)
    say(f"finished {len(wanted) - len(missing)} of {len(wanted)} runs")
    if failed:
        say(f"failed: {failed}")
    _table(archive.lines, say)
    return 1 if missing else 0


def _checksum(weights):
    from kseg.weights.files import checksum

    return weights and checksum(weights)


def plan_jobs(arguments):
    """Returns the study's name, and dicts of `name`, `arm`, `config` (JSON), `seeds`."""
    from kseg import config as config_module
    from kseg.studies import design

    shared = [*(TOY if arguments.toy else []), *arguments.overrides]
    if arguments.plan:
        plan = design.load_plan(arguments.plan)
        name, seeds, arms = plan.name, plan.study.seeds, plan.experiments
    else:
        name, seeds = pathlib.Path(arguments.config).stem, [0, 1, 2, 3, 4]
        arms = {arm: config_module.load(arguments.config, ARMS[arm]) for arm in ARMS}
    seeds = arguments.seeds or seeds
    chosen = arguments.arms or list(arms)
    if strange := sorted({*chosen} - {*arms}):
        raise SystemExit(f"There is no arm {strange[0]!r}. Choose from {list(arms)}")
    entries = [{"name": arm, "arm": arm} for arm in chosen]
    if arguments.tune:
        entries = json.loads(pathlib.Path(arguments.tune).read_text())
        entries = [e for e in entries if e.get("arm", "cross_entropy") in chosen]
    jobs = []
    for entry in entries:
        arm = entry.get("arm", "cross_entropy")
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(arms[arm].to_json())
            file.flush()
            overrides = [*shared, *entry.get("overrides", [])]
            experiment = config_module.load(file.name, overrides)
        _check(experiment)
        jobs.append(
            {
                "name": entry["name"],
                "arm": arm,
                "config": experiment.model_dump(mode="json"),
                "seeds": entry.get("seeds", seeds),
            }
        )
    return name, jobs


def _protocol(arguments):
    """Returns the study's name, and a job for each arm: candidates, tuning seeds, seeds."""
    from kseg import config as config_module

    protocol = json.loads(pathlib.Path(arguments.protocol).read_text())
    jobs = []
    for arm, candidates in protocol["arms"].items():
        if arguments.arms and arm not in arguments.arms:
            continue
        configs = {}
        for name, overrides in candidates.items():
            shared = [*(TOY if arguments.toy else []), *arguments.overrides]
            experiment = config_module.load(arguments.config, [*shared, *ARMS[arm], *overrides])
            _check(experiment)
            configs[name] = experiment.model_dump(mode="json")
        first = next(iter(configs.values()))
        seeds = {key: protocol[key] for key in ("tuning_seeds", "seeds", "more_seeds")}
        jobs.append({"name": arm, "arm": arm, "config": first, "candidates": configs, **seeds})
    return pathlib.Path(arguments.config).stem, jobs


def _check(experiment):
    data = experiment.data
    for key, rest in (("rotation", 0.0), ("max_class_share", 1.0), ("repeat_threshold", None)):
        if getattr(data, key) != rest:
            raise SystemExit(f"`data.{key}` is not offered on the device: must be {rest}")
    if experiment.train.steps is None:
        raise SystemExit("`train.epochs` is not offered on the device: use `train.steps`")
    for key, rest in (("restarts", []), ("accumulate", 1), ("ema", None)):
        if getattr(experiment.train, key) != rest:
            raise SystemExit(f"`train.{key}` is not offered on the device: must be {rest}")
    if experiment.train.precision == "mixed_float16":
        raise SystemExit("`train.precision` mixed_float16 is not offered on the device")


def _make_toy(arguments, scratch):
    """Writes a folder in CamVid's layout with synthetic images."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for part in (split, f"{split}annot"):
            (scratch / "camvid" / part).mkdir(parents=True)
        for i in range(count):
            label = np.kron(rng.integers(0, 12, (3, 4)), np.ones((20, 20), int)).astype("uint8")
            image = rng.integers(0, 50, (*label.shape, 3)) + 15 * label[..., None]
            cv2.imwrite(str(scratch / "camvid" / split / f"{i}.png"), image.astype("uint8"))
            cv2.imwrite(str(scratch / "camvid" / f"{split}annot" / f"{i}.png"), label)
    arguments.source = str(scratch / "camvid")
    arguments.config = arguments.config or str(ROOT / "configs" / "base" / "camvid_small.json")
    arguments.seeds = arguments.seeds or [0, 1]
    arguments.chunk, arguments.evaluations = 1, 2


def _store_data(arguments, name, scratch):
    """Decodes the data set and stores it for the workers."""
    import _device_data
    import numpy as np

    class_names, splits, fingerprint = _device_data.read_data_set(name, arguments.source)
    for split, values in splits.items():
        for key in ("images", "labels", "sizes"):
            np.save(scratch / f"{split}-{key}.npy", getattr(values, key))
        (scratch / f"{split}-ids.json").write_text(json.dumps(values.ids))
    counts = {split: len(values.ids) for split, values in splits.items()}
    return {
        "name": name,
        "folder": str(scratch),
        "class_names": class_names,
        "fingerprint": fingerprint,
        "summary": f"{name}, {counts}, {len(class_names)} classes",
    }


def _start(spec, scratch, name, environment):
    file = scratch / f"{name}.json"
    file.write_text(json.dumps(spec))
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def _choose_depthwise(probe, say, deadline):
    chosen = "grouped"
    timer = threading.Timer(min(90.0, max(1.0, deadline - time.time())), probe.kill)
    timer.start()
    for line in probe.stdout:
        if line.startswith("@depthwise "):
            times = json.loads(line.removeprefix("@depthwise "))
            chosen = min(times, key=times.get)
            say(f"depthwise, seconds a step: {times}: {chosen}")
        else:
            say(f"probe: {line.rstrip()}")
    probe.wait()
    timer.cancel()
    return chosen


class _Archive:
    """The results, written to disk as soon as they arrive.

    Continues one that is in the output already.

    Args:
        output: folder of the few files that are kept.
        folder: folder of results as `kseg.studies.results` writes it, kept as one archive.
        data_fingerprint: str.
        weights_checksum: str, or None: that of the file of initial weights.
    """

    def __init__(self, output, folder, data_fingerprint, weights_checksum):
        self._output, self._folder = output, folder
        self._data_fingerprint = data_fingerprint
        self._weights_checksum = weights_checksum
        self._lock = threading.Lock()
        self.lines, self._unsaved = [], []
        self._found = set()
        if (output / "study.zip").exists():
            from kseg.studies import results

            with zipfile.ZipFile(output / "study.zip") as file:
                file.extractall(folder)
            self._found = {(x["arm"], x["seed"], x["fingerprint"]) for x in results.read(folder)}

    @property
    def finished(self):
        """Returns the finished runs, a set of `(arm, seed)`."""
        return {(line["arm"], line["seed"]) for line in self.lines}

    def unfinished(self, jobs):
        """Returns the jobs without the seeds that an earlier call finished with their settings."""
        from kseg.studies import design, results

        rest = []
        for job in jobs:
            key = design.fingerprint(self._settings(job["name"], job["config"]))
            done = [seed for seed in job["seeds"] if (job["name"], seed, key) in self._found]
            self.lines += [
                x.line
                for x in results.read(self._folder)
                if (x["arm"], x["fingerprint"]) == (job["name"], key) and x["seed"] in done
            ]
            if seeds := [seed for seed in job["seeds"] if seed not in done]:
                rest.append({**job, "seeds": seeds})
        return rest

    def _settings(self, name, config):
        from kseg import config as config_module
        from kseg.studies import design
        from kseg.weights.files import initial_checksums

        experiment = config_module.parse(config, source=name)
        checksums = initial_checksums(experiment.model)
        if self._weights_checksum:
            checksums = dict.fromkeys(checksums, self._weights_checksum)
        return design.settings(experiment, self._data_fingerprint, checksums)

    def add(self, line, config, counts):
        """Adds a run: a dict, the JSON values of its config, the file of its pixel counts."""
        with self._lock:  # The raw message first, so that no run is lost if anything below fails.
            with open(self._output / "messages.jsonl", "a") as file:
                file.write(json.dumps({"line": line, "config": config}) + "\n")
            with self._replaced("counts.zip") as unfinished:
                if (self._output / "counts.zip").exists():
                    shutil.copy(self._output / "counts.zip", unfinished)
                with zipfile.ZipFile(unfinished, "a") as file:
                    file.write(counts, f"{line['arm']}-{line['seed']}.npz")
        from kseg.evaluation.image_counts import ImageCounts
        from kseg.studies import results

        settings = self._settings(line["arm"], config)
        with self._lock:
            results.append(self._folder, line, ImageCounts.load(counts), settings)
            self._unsaved.append(line)
            with (
                self._replaced("study.zip") as unfinished,
                zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file,
            ):
                for path in sorted(self._folder.rglob("*.*")):
                    file.write(path, path.relative_to(self._folder))
            with self._replaced("results.jsonl") as unfinished:
                shutil.copy(self._folder / "results.jsonl", unfinished)
            self.lines += self._unsaved  # With those for which there was no space before.
            self._unsaved.clear()

    @contextlib.contextmanager
    def _replaced(self, name):
        """Yields the path of a file that replaces one of the output when it is complete."""
        unfinished = self._output / f"{name}.tmp"
        try:
            yield unfinished
            unfinished.replace(self._output / name)
        finally:
            unfinished.unlink(missing_ok=True)


def _listen(arm, process, say, archive):
    """Collects the messages of a worker."""
    for text in process.stdout:
        if not text.startswith("@result "):
            say(f"{arm}: {text.rstrip()}")
            continue
        message = json.loads(text.removeprefix("@result "))
        line = message["line"]
        try:
            archive.add(**message)
        except OSError as error:
            say(
                f"{line['arm']} seed {line['seed']} cannot be saved ({error.strerror}). The same "
                "command trains what is missing"
            )
        except Exception:  # A reader that ends would leave its worker to train for nothing.
            say(f"{arm}: not in the archive:\n{traceback.format_exc()}")
        say(
            f"{line['arm']} seed {line['seed']}: mean IoU "
            f"{100 * line['last']['mean_iou']:.2f} (best {100 * line['best']['mean_iou']:.2f} "
            f"at {line['best']['step']}), {line['seconds']:.1f} s"
        )
    process.wait()


def _table(lines, say):
    """Formats means, and paired differences to cross-entropy, in points."""
    import numpy as np

    scores = {}
    for line in lines:
        scores.setdefault(line["arm"], {})[line["seed"]] = 100 * line["last"]["mean_iou"]
    baseline = scores.get("cross_entropy", {})
    for arm, of_arm in scores.items():
        values = np.array(list(of_arm.values()))
        gains = np.array([value - baseline[s] for s, value in of_arm.items() if s in baseline])
        text = f"{arm:28s} n {len(values)}  {values.mean():.2f}"
        if len(values) > 1:
            text += f" +- {values.std(ddof=1):.2f}"
        if arm != "cross_entropy" and len(gains) > 1:
            text += f"  paired {gains.mean():+.2f} +- {gains.std(ddof=1):.2f}"
        say(text)


def _commit():
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# A worker: one process, one arm.


def _work(spec):
    from _gpu_study_worker import Worker

    worker = Worker(spec)
    if spec.get("probe"):
        worker.probe()
        return 0
    return worker.run()


if __name__ == "__main__":
    sys.exit(main())
