"""Augmentations of `data.augmentations`, applied to whole batches before they are split.

The seed of each augmentation is a function of the experiment's seed, the step and the position in
the list, so that a resumed run sees the same batches, on any number of devices. In a cluster they
depend on the number of workers: each augments its own part of a batch, with a seed of its own.
"""

import inspect

from kseg.dotted import is_dotted, load_object
from kseg.errors import UserError


def check(augmentations, pixel_format=None):
    """Imports the augmentations named in the config and checks their arguments.

    Args:
        augmentations: the list `Experiment.data.augmentations`.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images, or None: 8-bit RGB.

    Raises:
        UserError: if a name cannot be imported or does not accept the given arguments, or a Keras
            layer is for RGB and the images are not.
    """
    for entry in augmentations:
        if not is_dotted(entry.name):
            continue
        found = load_object(entry.name)
        if not callable(found):
            raise UserError(
                f"`data.augmentations` must name Keras layers and functions. {entry.name!r} is "
                f"{type(found).__name__}"
            )
        if pixel_format is not None and inspect.isclass(found):
            raise UserError(
                f"The entry {entry.name!r} of `data.augmentations` is for 8-bit RGB images, as "
                f"Keras' layers are. These are {pixel_format}. Leave it out, or name a function "
                "(batch, seed, **arguments)"
            )
        batch = () if inspect.isclass(found) else (None, None)
        try:
            inspect.signature(found).bind(*batch, **entry.arguments)
        except TypeError as error:
            call = "function(batch, seed, **arguments)" if batch else "class(**arguments)"
            raise UserError(
                f"The entry {entry.name!r} of `data.augmentations` is called as {call}: {error}. "
                f"Received: arguments {entry.arguments}"
            ) from None
        except ValueError:  # Some callables have no introspectable signature.
            pass


def augmented(batches, augmentations, *, seed, start_step, pasted_classes, worker=0, parts=(1, 1)):
    """Applies augmentations to batches.

    Args:
        batches: `tf.data.Dataset` of `{"image": uint8 (batch, height, width, 3), "label": uint8
            (batch, height, width), ...}`.
        augmentations: the list `Experiment.data.augmentations`.
        seed: int, of the experiment.
        start_step: int, step of the first batch.
        pasted_classes: list with one entry per augmentation: the classes that `copy_paste` pastes;
            unused for other augmentations.
        worker: int, index of this machine.
        parts: `(here, all)`, the number of batches that make up a global batch, on this machine
            and on all machines. Images are mixed only within one such batch.

    Returns:
        `tf.data.Dataset` of the same structure.

    Raises:
        UserError: if an entry cannot be used or does not return such a batch.
    """
    if not augmentations:
        return batches
    import tensorflow as tf

    functions = list(map(_build, augmentations, pasted_classes))
    spec = batches.element_spec
    here, every = parts

    # This way, errors in a user's function surface as they were raised.
    @tf.autograph.experimental.do_not_convert
    def augment(number, batch):
        step = tf.cast(start_step + number // here, "int32")
        root = tf.stack([tf.constant(seed, "int32"), step])
        if every > 1:
            part = tf.cast(worker * here + number % here, "int32")
            root = tf.random.experimental.stateless_fold_in(root, part)
        for position, function in enumerate(functions):
            own = tf.random.experimental.stateless_fold_in(root, position)
            name = augmentations[position].name
            try:
                found = function(dict(batch), own)
            except Exception as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(
                    f"The entry {name!r} of `data.augmentations` failed on a batch: {lines[0]}"
                ) from error
            batch = _checked(found, spec, name)
        return batch

    return batches.enumerate().map(augment, num_parallel_calls=tf.data.AUTOTUNE)


def _build(entry, pasted):
    """Builds a function from a batch and a seed to a batch."""
    from pipelines import mixing

    arguments = entry.model_dump(exclude={"name", "classes", "below"})
    if entry.name == "cutmix":
        return lambda batch, seed: mixing.cut_mix(batch, seed, **arguments)
    if entry.name == "copy_paste":
        return lambda batch, seed: mixing.copy_paste(batch, seed, classes=pasted, **arguments)
    import keras

    found, arguments = load_object(entry.name), entry.arguments
    if not inspect.isclass(found):
        return lambda batch, seed: found(batch, seed, **arguments)
    try:
        built = found(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"The entry {entry.name!r} of `data.augmentations`: {error}") from None
    return _LayerOfBatches(built) if isinstance(built, keras.layers.Layer) else built


class _LayerOfBatches:
    """A Keras layer as a function of a batch and a seed.

    The layer's seed generators draw from that seed instead of their own state. Image preprocessing
    layers also transform the labels; other layers get only the images, as floats in 0 to 255.
    """

    def __init__(self, layer):
        import keras

        self._layer = layer
        self._seed = None
        generators = [
            value
            for part in layer._flatten_layers()
            for value in vars(part).values()
            if isinstance(value, keras.random.SeedGenerator)
        ]
        for generator in generators:
            generator.next = self._next

    def __call__(self, batch, seed):
        import tensorflow as tf

        self._seed, self._draws = seed, 0
        image = tf.cast(batch["image"], "float32")
        if hasattr(self._layer, "transform_segmentation_masks"):
            # The ignore label is 0 here, because layers pad areas outside the image with 0.
            masks = tf.cast(batch["label"] + 1, "float32")[..., None]
            found = self._layer({"images": image, "segmentation_masks": masks}, training=True)
            image = found["images"]
            masks = tf.cast(tf.round(found["segmentation_masks"][..., 0]), "uint8")
            batch["label"] = masks - 1
        else:
            image = self._layer(image, training=True)
        image = tf.clip_by_value(tf.round(image), 0, 255)
        return {**batch, "image": tf.cast(image, "uint8")}

    def _next(self, ordered=True):
        import tensorflow as tf

        self._draws += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._draws)


def _checked(batch, spec, name):
    """Sets the static shapes of a batch; raises UserError if it does not match the spec."""
    import tensorflow as tf

    if not isinstance(batch, dict) or batch.keys() != spec.keys():
        received = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise UserError(
            f"The entry {name!r} of `data.augmentations` must return a dict with {sorted(spec)}. "
            f"Received: {received}"
        )
    batch = {key: tf.convert_to_tensor(value) for key, value in batch.items()}
    for key, value in batch.items():
        if value.dtype != spec[key].dtype or not value.shape.is_compatible_with(spec[key].shape):
            raise UserError(
                f"The entry {name!r} of `data.augmentations` must return `{key}` as "
                f"{spec[key].dtype.name} {tuple(spec[key].shape)}. Received: {value.dtype.name} "
                f"{tuple(value.shape)}"
            )
        value.set_shape(spec[key].shape)
    return batch
