"""The prepared data of an experiment, as the training loop takes it.

The only place where the training command meets `pipelines`: the loop knows functions to batches.
"""

import dataclasses
from typing import Any

import pipelines
from kseg.classes import Classes


@dataclasses.dataclass(frozen=True)
class ExperimentData:
    """The data of an experiment's config.

    Attributes:
        config: `kseg.config.Experiment`.
        manifest: `pipelines.manifest.Manifest` of `data.folder`.
        classes: `kseg.classes.Classes`, with the training images and pixels of each class.
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
        return cls(config, manifest, manifest.classes(data.train_split))

    def identity(self):
        """Identity of the prepared data, to detect a change in the same folder: JSON-able dict.

        Returns:
            dict with `dataset`, `classes` (names), `value_range` (of deep images, see
            `pipelines.manifest.Manifest`), and `splits`: for that of training and that of
            evaluation `images` (their number), `pixels` (of each class, then of the ignored ones)
            and `content` (a hash of all images and masks).
        """
        splits = {}
        for name in (self.config.data.train_split, self.config.data.eval_split):
            split = self.manifest.split(name)
            splits[name] = {
                "images": split.num_images,
                "pixels": split.pixels,
                # Manifests of earlier versions know only what the records were made from.
                "content": split.content or self.manifest.fingerprint,
            }
        return {
            "dataset": self.manifest.dataset,
            "classes": self.manifest.class_names,
            "value_range": self.manifest.value_range,
            "splits": splits,
        }

    def check_labels(self):
        """Checks the numbers of labeled pixels, before anything is trained.

        Returns:
            list of str, warnings: a split that holds one class only, classes that are evaluated
            but not trained.

        Raises:
            pipelines.DataError: if a split has no labeled pixel: no loss, or no score, can be
                computed from it.
        """
        names, warnings, present = self.manifest.class_names, [], {}
        for key in ("train_split", "eval_split"):
            split = getattr(self.config.data, key)
            pixels = self.manifest.split(split).pixels[:-1]
            found = present[key] = [name for name, n in zip(names, pixels, strict=True) if n]
            if not found:
                raise pipelines.DataError(
                    f"data.{key} must have labeled pixels. In split {split!r} of "
                    f"{self.manifest.folder} all pixels are ignored. Prepare the data again with "
                    "the masks of these images, or use another split"
                )
            if len(found) == 1:
                what = "learn" if key == "train_split" else "score"
                warnings.append(
                    f"split {split!r} of {self.manifest.folder} holds pixels of one class only, "
                    f"{found[0]!r}: there is nothing to {what}, whatever the numbers say. Look at "
                    "its report.png"
                )
        unseen = [name for name in present["eval_split"] if name not in present["train_split"]]
        if unseen:
            shown = ", ".join(map(repr, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
            warnings.append(
                f"{len(unseen)} of the classes in split {self.config.data.eval_split!r} are in no "
                f"training image ({shown}): their IoU will be 0"
            )
        return warnings

    def training_batches(self, start_step, **part):
        """The endless batches from a step on.

        Args:
            start_step: int, step of the first batch.
            **part: `worker`, `num_workers` and `num_replicas` in a cluster.

        Returns:
            `tf.data.Dataset`, see `pipelines.loader.training_dataset`.
        """
        # Here: mistakes are found without Keras.
        from kseg.training.build import build_distortion
        from pipelines import loader

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
        from pipelines import loader

        data = self.config.data
        return loader.evaluation_dataset(
            data.folder, data.eval_split, batch_size=data.eval_batch_size
        )
