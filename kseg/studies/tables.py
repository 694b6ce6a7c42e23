"""The tables of a study as Markdown and CSV, and a chart of its scores."""

import csv
import io
import math

import numpy as np

from kseg import display
from kseg.studies.statistics import seeds_for_power

# Keys of a result, and the symbols of these statistics in Contextrast's supplement.
_MOST_SEEDS = 100  # Larger numbers are shown as "> 100".
FEATURES = {"alignment": "A", "uniformity": "U", "uniformity_3": "U_3", "uniformity_5": "U_5"}


def markdown(arms, class_names, *, title, baseline, note=""):
    """Renders the tables of a study as Markdown: arms, then classes; scores in percent.

    Args:
        arms: list of `kseg.studies.statistics.Arm`, the baseline among them.
        class_names: list of str.
        title: str.
        baseline: name of the arm that the others were compared with.
        note: str, a paragraph below the tables.

    Returns:
        str.
    """
    header, rows = _arm_rows(arms)
    text = [f"# {title}", "", f"Baseline: {baseline}.", "", *_grid(header, rows), "", LEGEND]
    header, rows = _class_rows(arms, class_names)
    text += [
        "",
        f"IoU by class, mean over seeds; the difference to {baseline}, and the number of seeds in "
        "which it has this sign:",
        "",
    ]
    text += _grid(header, rows)
    return "\n".join([*text, *(["", note] if note else [])]) + "\n"


LEGEND = (
    "mIoU at the last step, mean and standard deviation over seeds, in percent. Difference: to the "
    "baseline, paired by seed, with the 95 % interval of Student's t; unpaired: the interval by "
    "Welch's t over all seeds, which does not assume that runs of one seed are alike. Seeds "
    "needed: how many would show a difference of this size with 80 % probability, if its mean and "
    "deviation were known; few seeds leave them uncertain. Images: the 95 % interval of the same "
    "difference by a paired bootstrap over images. Scored: over the study's scored classes. * "
    "marks intervals that exclude 0. A, U, U_3, U_5: alignment (lower is better) and uniformity "
    "(higher is better) of the features. Time and memory: processor time (on a GPU elapsed time) "
    "and peak memory of a run relative to the baseline's."
)


def arms_csv(arms):
    """Returns CSV with one row per run: arm, seed, scores, features, cost."""
    out = io.StringIO()
    fields = ["arm", "seed", "backend", "commit", "steps", "last_mean_iou", "best_mean_iou"]
    fields += [
        "best_step",
        "scored_mean_iou",
        *FEATURES,
        "seconds",
        "cpu_seconds",
        "peak_memory_mb",
        "fingerprint",
    ]
    table = csv.DictWriter(out, fields, lineterminator="\n")
    table.writeheader()
    for arm in arms:
        for seed, run in arm.results.items():
            best = run.get("best") or {}
            row = {name: run.get(name) for name in fields}
            row |= {"arm": arm.name, "seed": seed, "last_mean_iou": run["last"]["mean_iou"]}
            row |= {"best_mean_iou": best.get("mean_iou"), "best_step": best.get("step")}
            row |= {"scored_mean_iou": arm.scored_of_seeds.get(seed)}
            row |= {name: (run.get("features") or {}).get(name) for name in FEATURES}
            table.writerow(row)
    return out.getvalue()


def classes_csv(arms, class_names):
    """Returns CSV with one row per arm and class: mean IoU, difference and its interval."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["arm", "class", "iou", "difference", "low", "high", "seeds", "same_sign"])
    for arm in arms:
        for i, name in enumerate(class_names if len(arm.class_iou) else []):
            change = arm.class_difference[i] if arm.class_difference else None
            cells = [""] * 5
            if change:
                cells = [change.mean, change.low, change.high, change.count, change.same_sign]
            row = [arm.name, display.spreadsheet_cell(name), arm.class_iou[i], *cells]
            table.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])
    return out.getvalue()


def chart(arms, *, title, baseline):
    """Draws the score of each seed, the mean of each arm and its interval.

    Args:
        arms: list of `kseg.studies.statistics.Arm`.
        title: str.
        baseline: name of the arm that the others were compared with.

    Returns:
        matplotlib figure.
    """
    from kseg.analysis.charts import LINES, drawing

    with drawing() as subplots:
        figure, (left, right) = subplots(1, 2, width=9, height=0.5 * len(arms) + 1.4)
        for row, arm in enumerate(arms):
            color = LINES[row % len(LINES)]
            scores = [100 * run["last"]["mean_iou"] for run in arm.results.values()]
            left.plot(scores, [row] * len(scores), "o", color=color, alpha=0.5, markersize=4)
            if scores:
                left.plot(100 * arm.last.mean, row, "|", color=color, markersize=16)
            change = arm.difference
            if change is not None and change.count:
                right.plot(100 * change.mean, row, "o", color=color, markersize=5)
            if change is not None and change.count > 1:
                right.plot([100 * change.low, 100 * change.high], [row, row], color=color)
        for axis in (left, right):
            axis.set(ylim=(len(arms) - 0.5, -0.5), yticks=range(len(arms)))
            axis.grid(False, axis="y")
        left.set(title=title, xlabel="mean IoU at the last step, %, one dot per seed")
        left.set_yticklabels([arm.name for arm in arms])
        right.set(title=f"Difference to {baseline}", xlabel="points, 95 % interval over seeds")
        right.set_yticklabels([])
        right.axvline(0, color="0.5", linewidth=0.8)
    return figure


def _arm_rows(arms):
    names = list(dict.fromkeys(name for arm in arms for name in arm.features))
    names = [name for name in FEATURES if name in names]
    scored = any(arm.scored is not None for arm in arms)
    header = ["arm", "seeds", "mIoU", "difference", "unpaired", "seeds needed", "images", "best"]
    header += ["scored mIoU", "scored difference", "scored unpaired"] if scored else []
    header += [*(FEATURES[name] for name in names), "time", "memory"]
    rows = []
    for arm in arms:
        row = [
            arm.name,
            str(arm.last.count),
            _mean_and_deviation(arm.last),
            _interval(arm.difference),
            _ends(arm.unpaired),
            _seeds_needed(arm.difference),
        ]
        row += [_images(arm.images), _percent(arm.best.mean)]
        if scored:
            row += [_mean_and_deviation(arm.scored), _interval(arm.scored_difference)]
            row.append(_ends(arm.scored_unpaired))
        row += [_number(arm.features[n].mean) if n in arm.features else "" for n in names]
        rows.append([*row, _number(arm.time, "x {:.2f}"), _number(arm.memory, "x {:.2f}")])
    return header, rows


def _class_rows(arms, class_names):
    arms = [arm for arm in arms if len(arm.class_iou)]
    header = ["class", *(arm.name for arm in arms)]
    rows = []
    for i, name in enumerate(class_names):
        row = [name]
        for arm in arms:
            cell = _percent(arm.class_iou[i])
            if arm.class_difference and arm.class_difference[i].count:
                change = arm.class_difference[i]
                cell += (
                    f" ({_percent(change.mean, '+')}{' *' * change.significant}, "
                    f"{change.same_sign} of {change.count})"
                )
            row.append(cell)
        rows.append(row)
    return header, rows


def _grid(header, rows):
    """Renders a Markdown table with aligned columns."""
    cells = [[_escape(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row):
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    return [line(cells[0]), line(["-" * w for w in widths]), *map(line, cells[1:])]


def _escape(cell):
    return " ".join(cell.replace("|", r"\|").split())


def _mean_and_deviation(estimate):
    if estimate is None or not estimate.count:
        return ""
    deviation = "" if math.isnan(estimate.deviation) else f" ± {100 * estimate.deviation:.2f}"
    return _percent(estimate.mean) + deviation


def _interval(estimate):
    if estimate is None or not estimate.count:
        return ""
    if estimate.count == 1:
        return _percent(estimate.mean, "+")
    return f"{_percent(estimate.mean, '+')} {_ends(estimate)}"


def _ends(estimate):
    if estimate is None or estimate.count < 2:
        return ""
    ends = f"[{_percent(estimate.low, '+')}, {_percent(estimate.high, '+')}]"
    return ends + " *" * estimate.significant


def _seeds_needed(difference):
    if difference is None or difference.count < 2:
        return ""
    return str(seeds_for_power(difference, most=_MOST_SEEDS) or f"> {_MOST_SEEDS}")


def _images(comparison):
    if comparison is None:
        return ""
    ends = f"[{_percent(comparison.low[-1], '+')}, {_percent(comparison.high[-1], '+')}]"
    return ends + " *" * bool(comparison.significant[-1])


def _percent(value, sign=""):
    return "" if value is None or np.isnan(value) else f"{100 * value:{sign}.2f}"


def _number(value, form="{:.3f}"):
    return "" if value is None or math.isnan(value) else form.format(value)
