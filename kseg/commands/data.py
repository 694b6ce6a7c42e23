"""The prepared data of an experiment, as the training loop takes it.

The only place where the training command meets `pipelines`: the loop knows functions to batches.
"""

import dataclasses
from typing import Any

import pipelines
from kseg.photometric import build_distortion
from kseg.runs import Classes
from pipelines import loader


@dataclasses.dataclass(frozen=True)
class ExperimentData:
    """The data of an experiment's config.

    Attributes:
        config: `kseg.config.Experiment`.
        manifest: `pipelines.records.Manifest` of `data.folder`.
        classes: `kseg.runs.Classes`, with the training images and pixels of each class.
    """

    config: Any
    manifest: Any
    classes: Classes

    @classmethod
    def open(cls, config):
        """Opens the data of a config; the embedded synthetic set is prepared on first use.

        Args:
            config: `kseg.config.Experiment`.

        Raises:
            pipelines.DataError: if the folder holds no records, another data set than the config
                names, or not the splits that it names.
        """
        data = config.data
        if data.dataset == "synthetic":
            pipelines.prepare_once("synthetic", data.folder)
        manifest = pipelines.read_manifest(data.folder)
        if manifest.dataset != data.dataset:
            raise pipelines.DataError(
                f"{data.folder} must hold {data.dataset!r}, as data.dataset says. It holds "
                f"{manifest.dataset!r}"
            )
        for split in (data.train_split, data.eval_split):
            manifest.split(split)
        classes = Classes(
            manifest.class_names,
            manifest.palette,
            manifest.split(data.train_split).images[:-1],
            manifest.categories,
            manifest.groups,
            manifest.split(data.train_split).pixels[:-1],
        )
        return cls(config, manifest, classes)

    def training_batches(self, start_step, **part):
        """The endless batches from a step on.

        Args:
            start_step: int, step of the first batch.
            **part: `worker`, `num_workers` and `num_replicas` in a cluster.

        Returns:
            `tf.data.Dataset`, see `pipelines.loader.training_dataset`.
        """
        data = self.config.data
        distortion = build_distortion(data)
        return loader.training_dataset(
            data.folder,
            data.train_split,
            batch_size=data.batch_size,
            crop_size=data.crop_size,
            seed=self.config.seed,
            start_step=start_step,
            scale_range=data.scale_range,
            flip=data.flip,
            rotation=data.rotation,
            max_class_share=data.max_class_share,
            repeat_threshold=data.repeat_threshold,
            num_draws=distortion.NUM_DRAWS if distortion else 0,
            on_error=data.on_error,
            max_errors=data.max_errors,
            cache=data.cache,
            service=data.service,
            **part,
        )

    def evaluation_batches(self):
        """The evaluation split once, in order: see `pipelines.loader.evaluation_dataset`."""
        data = self.config.data
        return loader.evaluation_dataset(
            data.folder, data.eval_split, batch_size=data.eval_batch_size
        )
