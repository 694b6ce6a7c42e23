"""Prepared data of an experiment, in the form that the training loop takes.

The only module of the training command that uses `pipelines`: the training loop itself receives
functions that return batches.
"""

import dataclasses
from typing import Any

import pipelines
from kseg.classes import Classes
from kseg.commands import augmentations
from kseg.config import with_steps
from kseg.errors import option
from pipelines.manifest import split_ratios


@dataclasses.dataclass(frozen=True)
class ExperimentData:
    """Data of an experiment's config.

    Attributes:
        config: `kseg.config.Experiment`, with `train.epochs` converted to steps.
        manifest: `pipelines.manifest.Manifest` of `data.folder`.
        classes: `kseg.classes.Classes`, with the number of training images and pixels per class.
    """

    config: Any
    manifest: Any
    classes: Classes

    @classmethod
    def open(cls, config):
        """Opens the data of a config; prepares the built-in synthetic data set on first use.

        Args:
            config: `kseg.config.Experiment`.

        Raises:
            pipelines.DataError: if the folder holds no records, or its data set, splits or classes
                are not those named in the config.
            kseg.config.ConfigError: if the steps of `train.epochs` do not fit the config.
            UserError: if an augmentation cannot be imported, or class weights do not fit.
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
        for split in (*data.train_splits, data.eval_split):
            manifest.split(split)
        _check_tile(data, manifest)
        ratios = split_ratios(data.train_split).items()
        shown = sum(manifest.split(name).num_images * ratio for name, ratio in ratios)
        config = with_steps(config, shown)
        opened = cls(config, manifest, manifest.classes(data.train_split))
        config.losses.check_classes(manifest.num_classes)
        opened._centered_classes()
        opened._pasted_classes()
        augmentations.check(data.augmentations, manifest.pixel_format)
        return opened

    def identity(self):
        """Returns the identity of the prepared data, which reveals changes in the same folder.

        Returns:
            JSON-able dict with `dataset`, `classes` (names), `value_range` (of deep images, see
            `pipelines.manifest.Manifest`), `pixels` (of images that are not 8-bit RGB, as there),
            and `splits`: for each training split and the
            evaluation split, `images` (number of images), `pixels` (of each class, then of ignored
            pixels) and `content` (a hash of all images and masks).
        """
        splits = {}
        for name in (*self.config.data.train_splits, self.config.data.eval_split):
            split = self.manifest.split(name)
            splits[name] = {
                "images": split.num_images,
                "pixels": split.pixels,
                # Manifests of earlier versions record only the sources of the records.
                "content": split.content or self.manifest.fingerprint,
            }
        return {
            "dataset": self.manifest.dataset,
            "classes": self.manifest.class_names,
            "value_range": self.manifest.value_range,
            **({} if self.manifest.pixels is None else {"pixels": self.manifest.pixels}),
            "splits": splits,
        }

    def check_labels(self):
        """Checks the numbers of labeled pixels before training.

        Returns:
            list of str, warnings about splits with a single class and about classes that are
            evaluated but not trained.

        Raises:
            pipelines.DataError: if a split has no labeled pixel, so that no loss or score can be
                computed.
        """
        names, warnings, present = self.manifest.class_names, [], {}
        for key in ("train_split", "eval_split"):
            split = getattr(self.config.data, key)
            pixels = self.manifest.union(split).pixels[:-1]
            labeled = present[key] = [name for name, n in zip(names, pixels, strict=True) if n]
            if not labeled:
                raise pipelines.DataError(
                    f"data.{key} must have labeled pixels. In split {split!r} of "
                    f"{self.manifest.folder} all pixels are ignored. Prepare the data again with "
                    "the masks of these images, or use another split"
                )
            if len(labeled) == 1:
                goal = "learn" if key == "train_split" else "score"
                warnings.append(
                    f"split {split!r} of {self.manifest.folder} holds pixels of one class only, "
                    f"{labeled[0]!r}: there is nothing to {goal}, whatever the numbers say. "
                    "Look at its report.png"
                )
        unseen = [name for name in present["eval_split"] if name not in present["train_split"]]
        if unseen:
            shown = ", ".join(map(repr, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
            warnings.append(
                f"{len(unseen)} of the classes in split {self.config.data.eval_split!r} are in no "
                f"training image ({shown}): their IoU will be 0"
            )
        evaluated, trained = self.config.data.eval_split, self.config.data.train_splits
        if evaluated in trained and len(trained) > 1:
            warnings.append(
                f"split {evaluated!r} is trained on and evaluated: its scores, and the choice of "
                "the best weights by them, say nothing about new images. Score another split"
            )
        return warnings

    def rare_classes(self, key, section):
        """Returns the rare classes as defined by a section of the config.

        Args:
            key: str, key of the section, for error messages.
            section: `kseg.config.schema.RareClasses` or None.

        Returns:
            list of int, class indices; empty if `section` is None.

        Raises:
            pipelines.DataError: if a name is unknown, or no class is rare.
        """
        if section is None:
            return []
        names = self.manifest.class_names
        if section.classes is not None:
            unknown = [name for name in section.classes if name not in names]
            if unknown:
                raise pipelines.DataError(
                    f"{key}.classes must be classes of {self.manifest.dataset!r}. "
                    f"Received: {unknown}. Choose from {names}"
                )
            return [names.index(name) for name in section.classes]
        pixels = self.classes.training_pixels
        shares = {c: n / max(sum(pixels), 1) for c, n in enumerate(pixels) if n}
        found = [c for c, share in shares.items() if share < section.below]
        if not found:
            raise pipelines.DataError(
                f"{key}.below must be above the share of a class in the labeled training pixels. "
                f"Received: {section.below}, and the smallest share is "
                f"{min(shares.values(), default=0):.3g}. Raise it, or name {key}.classes"
            )
        return found

    def _centered_classes(self):
        return self.rare_classes("data.rare_crops", self.config.data.rare_crops)

    def _pasted_classes(self):
        return [
            self.rare_classes(f"data.augmentations.{i}", a if a.name == "copy_paste" else None)
            for i, a in enumerate(self.config.data.augmentations)
        ]

    def training_batches(self, start_step, **part):
        """Returns an endless data set of training batches, starting at a step.

        Args:
            start_step: int, step of the first batch.
            **part: `worker`, `num_workers` and `num_replicas` in a cluster.

        Returns:
            `tf.data.Dataset`, see `pipelines.loader.training_dataset`.
        """
        # Imported here, so that mistakes are found without importing Keras.
        from kseg.training.build import build_distortion
        from pipelines import loader

        data = self.config.data
        distortion = build_distortion(data, self.manifest.pixel_format)
        batches = loader.training_dataset(
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
            rare_classes=self._centered_classes(),
            rare_probability=data.rare_crops.probability if data.rare_crops else 0.0,
            num_draws=distortion.NUM_DRAWS if distortion else 0,
            on_error=data.on_error,
            max_errors=data.max_errors,
            cache=data.cache,
            service=data.service,
            **part,
        )
        every = part.get("num_replicas", 1)
        return augmentations.augmented(
            batches,
            data.augmentations,
            seed=self.config.seed,
            start_step=start_step,
            pasted_classes=self._pasted_classes(),
            worker=part.get("worker", 0),
            parts=(every // part.get("num_workers", 1), every),
        )

    def evaluation_batches(self):
        """Reads the evaluation split once, in order: see `pipelines.loader.evaluation_dataset`."""
        from pipelines import loader

        data = self.config.data
        return loader.evaluation_dataset(
            data.folder, data.eval_split, batch_size=data.eval_batch_size
        )


def _check_tile(data, manifest):
    """Raises a DataError if crops are larger than the tiles that images were cut into."""
    tile = manifest.options.get("tile")
    if tile and any(side > whole for side, whole in zip(data.crop_size, tile, strict=True)):
        height, width = data.crop_size
        raise pipelines.DataError(
            f"data.crop_size must not be larger than the tiles of {manifest.folder}, {tile[0]} x "
            f"{tile[1]} (height x width). Received: {height} x {width}. Use smaller crops, or "
            f"prepare larger tiles: {option('tile', max(data.crop_size))}"
        )
