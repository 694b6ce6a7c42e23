"""Losses of Keras, passed to a trainer or to its `compile`, as named terms."""

import keras

from kseg.losses import OutputLoss


def terms_of_compile(loss, loss_weights, outputs):
    """Turns the arguments of `compile` into terms.

    Args:
        loss: None; a `keras.losses.Loss` or function of (labels, logits) to a scalar; or a dict
            from the name of an output to one.
        loss_weights: None: 1; a float, or a dict like `loss`.
        outputs: dict of the segmenter's outputs.

    Returns:
        dict from the name of a term to `(OutputLoss, weight)`: the name of a loss, after that of
        its output and a slash unless this is `logits`.

    Raises:
        ValueError: if the arguments have another form or name a missing output, or if a Keras loss
            takes probabilities or counts ignored pixels.
    """
    if loss is None:
        if loss_weights is not None:
            raise ValueError(
                "`loss_weights` are those of `loss` in compile; other losses and objectives have "
                f"theirs in the constructor. Received: {loss_weights=} without `loss`"
            )
        return {}
    losses = loss if isinstance(loss, dict) else {"logits": loss}
    if loss_weights is None:
        weights = dict.fromkeys(losses, 1.0)
    elif isinstance(loss_weights, dict):
        weights = {**dict.fromkeys(losses, 1.0), **loss_weights}
    else:
        numbers = loss_weights if isinstance(loss_weights, list | tuple) else [loss_weights]
        if len(numbers) != len(losses):
            raise ValueError(
                f"`loss_weights` must have a number for each of the {len(losses)} losses. "
                f"Received: {loss_weights}"
            )
        weights = dict(zip(losses, numbers, strict=True))
    if unknown := (losses.keys() | weights.keys()) - outputs.keys():
        raise ValueError(
            f"`loss` and `loss_weights` name outputs of the segmenter. Received: {sorted(unknown)}."
            f" Choose from {sorted(outputs)}"
        )
    terms = {}
    for output, function in losses.items():
        check_loss(function)
        name = getattr(function, "name", None) or getattr(function, "__name__", "compiled_loss")
        name = name if output == "logits" else f"{output}/{name}"
        terms[name] = (OutputLoss(function, output), float(weights[output]))
    return terms


def as_functions(losses):
    """Turns the losses of a trainer into functions of (labels, outputs).

    Args:
        losses: dict from a name to `(loss, weight)`, as
            `kseg.training.trainer.SegmentationTrainer` takes it.

    Returns:
        dict of that form, with an `OutputLoss` in place of each `keras.losses.Loss`.

    Raises:
        ValueError: as `check_loss`.
    """
    functions = {}
    for name, (loss, weight) in losses.items():
        check_loss(loss.loss if isinstance(loss, OutputLoss) else loss)
        is_loss = isinstance(loss, keras.losses.Loss)
        functions[name] = (OutputLoss(loss) if is_loss else loss, weight)
    return functions


def check_loss(loss):
    """Rejects losses that would silently compute something other than their name suggests.

    Raises:
        ValueError: if `loss` is not callable, or one of Keras that does not take class numbers,
            logits and an ignored class.
    """
    way_out = "Use a loss of kseg.losses, such as kseg.losses.CrossEntropy()"
    if not callable(loss):
        raise ValueError(
            "`loss` must be a loss of logits, or a dict of them by output; Keras' losses by name "
            f"take probabilities, and count ignored pixels. Received: {loss!r}. {way_out}"
        )
    kind = loss if hasattr(loss, "__module__") and hasattr(loss, "__name__") else type(loss)
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    if kind.__module__.split(".")[0] == "keras" and not sparse:
        raise ValueError(
            "Of Keras' losses, only SparseCategoricalCrossentropy takes class numbers and ignores "
            f"pixels. Received: {kind.__name__}. {way_out}"
        )
    if sparse and not (loss.from_logits and loss.ignore_class is not None):
        raise ValueError(
            "Keras' cross-entropy needs from_logits=True and ignore_class=255 here. Received: "
            f"from_logits={loss.from_logits}, ignore_class={loss.ignore_class}. {way_out}"
        )
