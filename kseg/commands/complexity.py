"""Cost of contrastive training: `scripts/analyze.py --what complexity`.

Two columns are compared: a config as it is (`contrast`) and the same config without its contrastive
objectives (`without`). All else is equal, including the other losses and the auxiliary head.
"""

import json
import pathlib
import subprocess
import sys

from kseg.analysis.measuring import PeakMemory, best_seconds, fill_banks, in_new_process
from kseg.commands import console

# Key in the results, its name in the table, and the divisor of its values there.
_ROWS = (
    ("parameters", "M weights", 1e6),
    ("flops", "GFLOPs an image", 1e9),
    ("seconds", "seconds", 1),
    ("peak_bytes", "peak memory, MB", 1e6),
)


def complexity(options):
    """Prints parameters, FLOPs, time and memory of a config with and without contrast.

    Source: Sung et al., CVPR 2024, supplement Table 7.

    Args:
        options: namespace with `config` and `overrides`, or `run`; `rounds`; `output` or None.

    Raises:
        UserError: if the config has no contrastive objective, or psutil is missing.
    """
    from kseg import config as config_module
    from kseg import files
    from kseg.analysis.extras import require
    from kseg.errors import UserError
    from kseg.progress import Progress
    from kseg.runs import Run

    output = options.output and pathlib.Path(options.output)
    if options.run:
        run = Run.open(options.run)
        config, output = run.config, output or run.path / "evaluation" / "complexity.json"
    elif options.config:
        config = config_module.load(options.config, options.overrides)
    else:
        raise UserError("--what complexity needs --run or --config")
    if not config.contrast:
        raise UserError(
            f"The config {config.name!r} has no `contrast`: there is nothing to compare. Use one "
            "of a contrastive method, such as configs/camvid_small_contextrast.json"
        )
    if output:
        files.check_file(output)
    if options.rounds < 1:
        raise UserError(f"--rounds must be 1 or more. Received: {options.rounds}")
    require("psutil")
    _describe_data(config)
    if output:
        files.check_file(output)

    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    # First, before this process claims the memory of a GPU.
    peaks = {}
    with Progress("measuring memory", 4, unit="processes") as progress:
        for phase in ("training", "inference"):
            for column in ("without", "contrast"):
                peaks[phase, column] = peak_in_new_process(config, phase, column)
                progress.advance()
    tf.get_logger().setLevel("ERROR")  # TensorFlow's FLOP counter warns about its own calls.
    with Progress("building, compiling and timing training steps and predictions"):
        subject = Subject(config)
        measured = subject.sizes_and_times(options.rounds)
    for phase, columns in measured.items():
        for column, values in columns.items():
            values["peak_bytes"] = peaks[phase, column]
    height, width = config.data.crop_size
    about = {
        "config": config.name,
        "objectives": [objective.name for objective in config.contrast],
        "device": "GPU" if gpus else "CPU",
        "precision": config.train.precision,
        "batch_size": config.data.batch_size,
        "crop_size": [height, width],
        "images": subject.source,
        "rounds": options.rounds,
    }
    print(
        f"{config.name} with {', '.join(about['objectives'])}, and without: one {about['device']}, "
        f"{about['precision']}, {height} x {width}, images of {subject.source}, best of "
        f"{options.rounds} rounds"
    )
    print(table(measured, config.data.batch_size))
    about |= measured
    if output:
        files.write_text(output, json.dumps(about, indent=2) + "\n")
        print(f"complexity:  {output}")
    return about


class Subject:
    """A config with and without contrast, and a batch to measure them with.

    Args:
        config: `kseg.config.Experiment`.

    Attributes:
        source: str, data set of the images: the config's if it is prepared, else synthetic street
            scenes, in which only 8 classes have pixels.
        batch: dict, a batch in the form that training receives.
    """

    def __init__(self, config):
        self._config = config
        self._classes, self.source, self.batch, self._pixels = _classes_and_batch(config)

    def run(self, column):
        """Creates an unsaved run of one column, `contrast` or `without`."""
        from kseg.runs import Run

        config = self._config
        if column == "without":
            config = config.model_copy(update={"contrast": []})
        return Run("unwritten", config, self._classes, {"pixels": self._pixels})

    def build(self, column):
        """Builds `(trainer, step)` with full memory banks, as after some training."""
        import tensorflow as tf

        from kseg.training.build import build_trainer
        from kseg.training.distribution import use_xla
        from kseg.training.trainer import build_step

        strategy = tf.distribute.get_strategy()
        trainer = build_trainer(self.run(column), strategy)
        fill_banks(trainer.objectives)
        jit_compile = use_xla(self._config.train.jit_compile, strategy)
        return trainer, build_step(trainer, strategy, jit_compile=jit_compile)

    def sizes_and_times(self, rounds):
        """Counts weights and FLOPs, and times training steps and predictions.

        Args:
            rounds: int, number of timings. The columns alternate, so that noise affects both alike.

        Returns:
            dict from phase (`training`, `inference`) to column to `{"parameters", "flops",
            "seconds"}`. FLOPs are counted for the forward pass of one image; in training, with
            projectors and auxiliary head but without losses. Seconds are per training step, and
            per image in inference.
        """
        import tensorflow as tf

        from kseg.analysis.complexity import count_flops, count_parameters
        from kseg.segmenters import inference_model

        channels = self.batch["image"].shape[-1]
        spec = tf.TensorSpec((1, *self._config.data.crop_size, channels))
        measured = {"training": {}, "inference": {}}
        works = {"training": {}, "inference": {}}
        for column in ("without", "contrast"):
            trainer, step = self.build(column)
            deployed = inference_model(trainer.segmenter)
            for phase, model, work in (
                ("training", trainer.segmenter, self._training_step(step)),
                ("inference", deployed, self._prediction(deployed)),
            ):
                work()  # Compiles.
                works[phase][column] = work
                measured[phase][column] = {
                    "parameters": count_parameters(model),
                    "flops": count_flops(lambda x, m=model: m(x, training=False), spec),
                    "seconds": float("inf"),
                }
        # A prediction is much shorter than a training step, so noise weighs more.
        for phase, times in (("training", rounds), ("inference", 10 * rounds)):
            for _ in range(times):
                for column, work in works[phase].items():
                    values = measured[phase][column]
                    values["seconds"] = min(values["seconds"], best_seconds(work, 1))
        return measured

    def peak_bytes(self, phase, column):
        """Measures the memory for building a column and two training steps or predictions."""
        from kseg.segmenters import inference_model

        with PeakMemory() as memory:
            if phase == "training":
                work = self._training_step(self.build(column)[1])
            else:  # As deployed: projectors are never built.
                work = self._prediction(inference_model(self.run(column).build_segmenter()))
            for _ in range(2):
                work()
        return round(memory.megabytes * 1e6)

    def _training_step(self, step):
        return lambda: float(step(self.batch)["loss"])

    def _prediction(self, model):
        import tensorflow as tf

        predict = tf.function(lambda images: model(images, training=False), autograph=False)
        return lambda: predict(self.batch["image"][:1]).numpy()


def table(sizes_and_times, batch_size):
    """Formats a table of `sizes_and_times`, with the overhead of contrast in percent."""
    lines = [f"{'':34}{'without':>12}{'contrast':>12}{'increase':>12}"]
    titles = {"training": f"training, batch of {batch_size}", "inference": "inference, one image"}
    for phase, columns in sizes_and_times.items():
        lines.append(titles[phase])
        for key, name, unit in _ROWS:
            without, contrast = (columns[column][key] for column in ("without", "contrast"))
            cells = "".join(f"{value / unit:>12.3f}" for value in (without, contrast))
            lines.append(f"  {name:<32}{cells}{100 * (contrast / without - 1):>+10.2f} %")
    return "\n".join(lines)


def peak_in_new_process(config, phase, column):
    """Calls `Subject.peak_bytes` in a new process, with nothing else in memory."""
    from kseg.errors import UserError

    work = json.dumps({"config": json.loads(config.to_json()), "phase": phase, "column": column})
    try:
        return in_new_process("-m", __name__, work)["peak_bytes"]
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"Measuring the memory of {phase} ({column}) failed, see above (exit code "
            f"{error.returncode}). If memory was short, use a smaller data.batch_size"
        ) from None


def _describe_data(config):
    """Finds the classes of a config and the images to measure with.

    Returns:
        `(classes, source, manifest)`: `kseg.classes.Classes`; name of the data set that the images
        come from; its `pipelines.manifest.Manifest`, or None if the config's data set is not
        prepared and the images are synthetic.

    Raises:
        UserError: if the data is damaged, or the classes are known only from prepared data.
    """
    import pipelines
    from kseg.errors import UserError
    from pipelines import manifest as manifests
    from pipelines.datasets.dataset import Taxonomy

    data = config.data
    if manifests.exists(data.folder):
        manifest = pipelines.read_manifest(data.folder)
        return manifest.classes(data.train_split), manifest.dataset, manifest
    try:
        taxonomy = Taxonomy.load(data.dataset)
    except (FileNotFoundError, KeyError):
        raise UserError(
            f"The classes of {data.dataset!r} are known once it is prepared, with "
            "scripts/prepare_data.py"
        ) from None
    return taxonomy.classes(), "synthetic", None


def _classes_and_batch(config):
    """Returns `(classes, dataset, batch, pixels)` for a config; the last of its manifest."""
    import pipelines
    from kseg import waiting
    from kseg.training.build import build_distortion
    from pipelines import loader

    data = config.data
    scales = data.scale_range
    classes, source, manifest = _describe_data(config)
    folder, split = data.folder, data.train_split
    if manifest is None:
        folder, split = "data/synthetic", "train"
        pipelines.prepare_once(source, folder)
        size = pipelines.read_manifest(folder).split(split).image_size
        # Each scene has the size of the crop.
        scales = (
            max(wanted / available for wanted, available in zip(data.crop_size, size, strict=True)),
        ) * 2
    distortion = build_distortion(
        data, manifest and manifest.pixel_format
    )  # Part of the training step.
    batches = loader.training_dataset(
        folder,
        split,
        batch_size=data.batch_size,
        crop_size=data.crop_size,
        seed=config.seed,
        scale_range=scales,
        num_draws=distortion.NUM_DRAWS if distortion else 0,
    )
    return classes, source, waiting.next_batch(iter(batches)), manifest and manifest.pixels


def main():
    """Runs the command and returns its exit code."""
    from kseg import config as config_module

    work = json.loads(sys.argv[1])
    config = config_module.parse(work["config"], source="config")
    peak = Subject(config).peak_bytes(work["phase"], work["column"])
    print(json.dumps({"peak_bytes": peak}))
    return 0


if __name__ == "__main__":
    console.run(main)
