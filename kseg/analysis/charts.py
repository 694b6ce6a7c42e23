"""Charts by matplotlib, as PNG, or as SVG that adopts the text color of the surrounding page.

matplotlib is an optional dependency, imported only when a chart is drawn.
"""

import contextlib
import io
import itertools
import re
import warnings

import numpy as np

from kseg import display
from kseg.analysis.extras import require

# Readable on white and near-black, and distinguishable with color blindness (after Okabe and Ito).
LINES = ("#2f7fc1", "#e0762f", "#2f9e6e", "#b65fb0", "#c99a1e", "#d6483f", "#6f7b8c", "#4db3c9")
_INK = "#12161c"
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # Names may contain $.
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    **dict.fromkeys(
        (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        _INK,
    ),
}


def training_curves(train, evaluation):
    """Draws the curves of a training run: loss terms, learning rate, scores.

    Thin lines are measured values, thick lines are smoothed by `smooth`.

    Args:
        train: dict from a tag to `(steps, values)`: `loss/...`, `learning_rate`.
        evaluation: dict of the same form: `mean_iou`, `pixel_accuracy`, `mean_accuracy`.

    Returns:
        matplotlib figure.
    """
    with drawing() as subplots:
        figure, axes = subplots(1, 3, width=11, height=3.5)
        losses = {tag: values for tag, values in train.items() if tag.startswith("loss/")}
        for (tag, (steps, values)), color in zip(losses.items(), itertools.cycle(LINES)):
            axes[0].plot(steps, values, color=color, linewidth=0.7, alpha=0.35)
            axes[0].plot(steps, smooth(values), color=color, label=tag.removeprefix("loss/"))
        if any(min(values) <= 0 for _, values in losses.values()) or not losses:
            axes[0].set_title("loss terms")
        else:
            axes[0].set_yscale("log", subs=[])
            axes[0].yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            axes[0].yaxis.set_major_formatter("{x:g}")
            axes[0].set_title("loss terms (logarithmic)")
        axes[1].set_title("learning rate")
        if "learning_rate" in train:
            axes[1].plot(*train["learning_rate"], color=LINES[0])
        axes[1].yaxis.set_major_formatter("{x:.1e}")
        axes[2].set_title("scores on the evaluation split, %")
        scores = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy"}
        scores["pixel_accuracy"] = "pixel accuracy"
        for (tag, name), color in zip(scores.items(), LINES, strict=False):
            if tag in evaluation:
                steps, values = evaluation[tag]
                axes[2].plot(steps, 100 * np.array(values), "o-", markersize=3.5, color=color)
                axes[2].lines[-1].set_label(f"{name} ({100 * values[-1]:.1f})")
        axes[2].set_ylim(0, 100)
        # The same range of steps in all plots, even with a single evaluation.
        last = max([steps[-1] for steps, _ in [*train.values(), *evaluation.values()]], default=1)
        for axis in axes:
            axis.set(xlabel="step", xlim=(-0.03 * last, 1.03 * last))
            axis.xaxis.get_major_locator().set_params(integer=True)
            if axis.get_legend_handles_labels()[0]:
                below = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.18), "borderpad": 0}
                axis.legend(ncols=2, columnspacing=1, **below)
    return figure


def point_map(positions, classes, palette, *, title, class_names=None):
    """Draws points in the plane in the colors of their classes.

    Args:
        positions: float array `(points, 2)`.
        classes: int array `(points,)`.
        palette: list of `[red, green, blue]`.
        title: str.
        class_names: list of str, for a legend of the classes that occur, or None: no legend.

    Returns:
        matplotlib figure.
    """
    present = np.unique(classes)
    columns = 0 if class_names is None else -(-len(present) // 26)
    with drawing() as subplots:
        figure, (axis,) = subplots(1, 1, width=5.2 + 1.4 * columns, height=5)
        for n in present:
            chosen = positions[classes == n]
            color = np.array(palette[n]) / 255
            axis.scatter(*chosen.T, s=16, color=color, edgecolor=(_INK, 0.35), linewidth=0.4)
            if columns:
                axis.scatter([], [], s=36, color=color, edgecolor=_INK, linewidth=0.4)
                # matplotlib omits labels that begin with _.
                name = f" {class_names[n]}" if class_names[n][:1] == "_" else class_names[n]
                axis.collections[-1].set_label(display.fit(name, 28).rstrip())
        axis.set(xticks=[], yticks=[], title=title)
        axis.spines[:].set_visible(False)
        axis.grid(False)
        if columns:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns)
    return figure


def histogram(shares, *, title):
    """Draws a histogram of fractions.

    Args:
        shares: float array, in [0, 1].
        title: str.

    Returns:
        matplotlib figure.
    """
    with drawing() as subplots:
        figure, (axis,) = subplots(1, 1, width=5, height=2.9)
        axis.hist(100 * shares, bins=np.arange(0, 101, 5), color=LINES[0], rwidth=0.9)
        axis.set(title=title, ylabel="images", xlim=(0, 100))
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.grid(False, axis="x")
    return figure


def smooth(values, weight=0.8):
    """Smooths values by an exponential moving average without initialization bias.

    Value i is the mean of values 0 to i, weighted by `weight ** distance`.

    Args:
        values: list of float.
        weight: float in [0, 1).

    Returns:
        list of float of the same length.
    """
    total = norm = 0.0
    smoothed = []
    for value in values:
        total = weight * total + value
        norm = weight * norm + 1
        smoothed.append(total / norm)
    return smoothed


def png(figure):
    """Returns the bytes of a PNG file with a white background."""
    content = io.BytesIO()
    with _without_glyph_warnings():
        metadata = {"Software": None}
        figure.savefig(content, format="png", dpi=150, facecolor="white", metadata=metadata)
    return content.getvalue()


def svg(figure, name):
    """Returns an `<svg>` element without background, drawn in the color of the surrounding text.

    Args:
        figure: matplotlib figure.
        name: str, letters only, a prefix of each id, so that a page can contain several charts.

    Returns:
        str.
    """
    import matplotlib

    content = io.StringIO()
    rc = {"svg.hashsalt": name, "svg.fonttype": "path"}
    with matplotlib.rc_context(rc), _without_glyph_warnings():
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=metadata)
    text = content.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = text.replace(_INK, "currentColor")
    # The page sets the size; only the view box is kept.
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height|version|xmlns(:xlink)?)="[^"]*"', "", head)
    return f"{head}>{rest}".replace("xlink:href", "href")


@contextlib.contextmanager
def _without_glyph_warnings():
    """Suppresses warnings about characters missing from the font, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(Glyph|Matplotlib currently does not support) ")
        yield


@contextlib.contextmanager
def drawing():
    """Yields a function that creates figures in kseg's style, without pyplot's global state."""
    require("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    def subplots(rows, columns, *, width, height):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False).reshape(-1)

    with matplotlib.rc_context(_STYLE):
        yield subplots
