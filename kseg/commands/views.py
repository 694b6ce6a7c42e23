"""Options of inference that `evaluate` and `predict` share: windows, scales and mirroring."""

from kseg.commands import checking, console

WINDOWS = 4  # Windows in a batch, unless a batch size is given.
BLENDS = ("flat", "gaussian", "center")


def add_arguments(parser, *, windows):
    """Adds `--sliding-window`, `--overlap`, `--blend`, `--scales` and `--flip`.

    Args:
        parser: parser, or group of one.
        windows: str, how windows and scales combine; completes the help of `--sliding-window`.
    """
    parser.add_argument(
        "--scales",
        type=float,
        nargs="*",
        metavar="S",
        help="average the probabilities of several sizes; without numbers 0.5, 0.75, ... 2.0",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--sliding-window",
        type=console.positive,
        nargs="*",
        metavar="SIZE",
        help=f"average the logits of overlapping windows of HEIGHT WIDTH{windows}; without "
        "numbers the crop_size of the run",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        help="overlap of neighboring windows, in [0, 1); default: a third",
    )
    parser.add_argument(
        "--blend",
        choices=BLENDS,
        help="weights where windows overlap: flat (default): equal; gaussian: lower towards the "
        "borders of a window; center: only the window whose center is nearest",
    )


def check_types(options):
    """Raises a UserError for values of a type that the command line cannot produce."""
    checking.check_numbers("scales", options.scales, "a list of numbers, such as [0.5, 1.0]")
    checking.check_size("sliding_window", options.sliding_window, empty=True)
    overlaps = None if options.overlap is None else [options.overlap]
    checking.check_numbers("overlap", overlaps, "a number in [0, 1)")
    checking.check_choice("blend", options.blend, BLENDS)


def check(options, refuse):
    """Calls `refuse(message)` for values that conflict or are out of range."""
    if options.scales and not all(0 < scale < float("inf") for scale in options.scales):
        refuse(f"--scales must be above 0, are {' '.join(map(str, options.scales))}")
    window = options.sliding_window
    if window and len(window) != 2:
        refuse(f"--sliding-window takes HEIGHT WIDTH or nothing, got {len(window)} numbers")
    for name in ("overlap", "blend"):
        if getattr(options, name) is not None and window is None:
            refuse(f"--{name} goes with --sliding-window")
    if options.overlap is not None and not 0 <= options.overlap < 1:
        refuse(f"--overlap must be in [0, 1), is {options.overlap}")


def wrap(model, num_classes, options, crop_size, batch_size):
    """Wraps a model for the scales, mirroring and windows that the options request.

    Args:
        model: as `kseg.evaluation.sliding_window.SlidingWindow` takes it.
        num_classes: int.
        options: namespace with the attributes of `add_arguments`.
        crop_size: `(height, width)`, windows for `--sliding-window` without numbers.
        batch_size: int, windows in a batch.

    Returns:
        `(model, settings)`: the wrapped model, which returns probabilities if `scales` or `flip` is
        among the settings and logits otherwise; and the settings as a JSON-able dict.
    """
    from kseg.evaluation.scaled_views import MultiScale
    from kseg.evaluation.sliding_window import SlidingWindow

    settings = {}
    if options.sliding_window is not None:
        settings = window_settings(options, crop_size)
        model = SlidingWindow(model, num_classes, **settings, batch_size=batch_size)
    scales = scales_of(options)
    if scales != [1.0] or options.flip:
        model = MultiScale(model, num_classes, scales, flip=options.flip)
        settings |= {"scales": scales, "flip": options.flip}
    return model, settings


def crop_size(network, options):
    """Chooses the windows for `--sliding-window` without numbers.

    Args:
        network: result of `kseg.load`.
        options: namespace of `model`, `checkpoint` and `sliding_window`, as for
            `kseg.commands.predict.predict`.

    Returns:
        `(height, width)`: the crop size of a run, or the size of a network with a fixed one; None
        if numbers are given.
    """
    if options.sliding_window is None or options.sliding_window:
        return None
    if options.checkpoint is not None:
        from kseg.runs import Run

        return Run.open(options.model).config.data.crop_size
    if getattr(network, "size", None) is None:
        checking.refuse("--sliding-window with an exported network needs HEIGHT WIDTH")
    return network.size


def window_settings(options, crop_size):
    """Returns the arguments `window`, `overlap` and `blend` of a `SlidingWindow`, a dict."""
    return {
        "window": list(options.sliding_window or crop_size),
        "overlap": 1 / 3 if options.overlap is None else options.overlap,
        "blend": options.blend or "flat",
    }


def scales_of(options):
    """Returns the list of scales."""
    from kseg.evaluation.scaled_views import SCALES

    return [1.0] if options.scales is None else list(options.scales or SCALES)


def modes(options):
    """Returns the parts of a file name that describe scales, mirroring and windows."""
    return [
        *(["sliding"] if options.sliding_window is not None else []),
        *([options.blend] if options.blend not in (None, "flat") else []),
        *(["ms"] if options.scales not in (None, [1.0]) else []),
        *(["flip"] if options.flip else []),
    ]


def memory_needs(needs, options, settings, num_classes):
    """Returns a function that estimates the memory of windows and views of an image.

    Args:
        needs: function from `(height, width)` to bytes for one call of the network; or None.
        options: as for `wrap`.
        settings: as returned by `wrap`.
        num_classes: int.

    Returns:
        function from `(height, width)` of an image to bytes; None without `needs`.
    """
    if needs is None or not settings:
        return needs
    scale = max(scales_of(options))

    def with_views(size):
        size = [max(round(extent * scale), 1) for extent in size]
        # Two arrays of logits: the sums over the windows, and over the views.
        sums = 8 * num_classes * size[0] * size[1]
        if "window" not in settings:
            needed = needs(tuple(size))
        else:
            extents = zip(settings["window"], size, strict=True)
            needed = needs(tuple(min(pair) for pair in extents))
            needed = needed and needed * (options.batch_size or WINDOWS)
        return needed and needed + sums

    return with_views
