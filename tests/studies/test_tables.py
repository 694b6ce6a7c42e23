import csv
import io

from kseg.analysis.charts import png
from kseg.studies import results, tables
from kseg.studies.statistics import summarize
from tests.studies.fakes import add


def summary(folder, names):
    features = {"alignment": 0.5, "uniformity": 1.25}
    add(folder, "ce", 0, [[10, 20], [30, 40]], features=features)
    add(folder, "ce", 1, [[20, 20], [40, 40]], features=features)
    add(folder, "a|b", 0, [[20, 20], [40, 40]])
    add(folder, "a|b", 1, [[40, 20], [60, 40]])
    return summarize(results.read(folder), ["ce", "a|b", "none"], "ce", names)


def test_markdown(tmp_path):
    arms = summary(tmp_path, ["sky", "x|y"])
    text = tables.markdown(arms, ["sky", "x|y"], title="tiny", baseline="ce")
    assert "Baseline: ce." in text
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2].startswith(r"| ce   | 2     | 27.50 ± 3.54 |")
    # Differences +5 and +10: the half of the interval is 12.7062 * 2.5 = 31.77.
    assert r"| a\|b | 2     | 35.00 ± 7.07 | +7.50 [-24.27, +39.27] |" in rows[3]
    # Variances 12.5 and 50 of two values each: error 5.5902, 1.4706 degrees of freedom, t 6.188.
    assert "| [-27.09, +42.09] |" in rows[3]
    assert "+7.50, +7.50] *" in rows[3]  # The bootstrap over images.
    assert rows[4].startswith("| none | 0")
    assert any(row.startswith(r"| sky   | 25.00 | 40.00 (+15.00, 2 of 2) |") for row in rows)
    assert any(row.startswith(r"| x\|y  | 30.00 | 30.00 (+0.00, 2 of 2)") for row in rows)
    assert "0.500" in rows[2] and "1.250" in rows[2]


def test_csv_cells_are_not_formulas(tmp_path):
    arms = summary(tmp_path, ["=1+1", "road"])
    rows = list(csv.DictReader(io.StringIO(tables.classes_csv(arms, ["=1+1", "road"]))))
    assert rows[0]["class"] == "'=1+1" and float(rows[0]["iou"]) == 0.25
    assert [row["same_sign"] for row in rows if row["arm"] == "a|b"] == ["2", "2"]
    runs = list(csv.DictReader(io.StringIO(tables.arms_csv(arms))))
    assert [(r["arm"], r["seed"]) for r in runs] == [
        ("ce", "0"),
        ("ce", "1"),
        ("a|b", "0"),
        ("a|b", "1"),
    ]
    assert float(runs[0]["last_mean_iou"]) == 0.25 and runs[0]["scored_mean_iou"] == ""


def test_scored_classes_have_columns_of_their_own(tmp_path):
    add(tmp_path, "ce", 0, [[10, 20], [30, 40]])
    add(tmp_path, "new", 0, [[20, 20], [40, 40]])
    arms = summarize(results.read(tmp_path), ["ce", "new"], "ce", ["sky", "road"], ["road"])
    runs = list(csv.DictReader(io.StringIO(tables.arms_csv(arms))))
    assert [float(run["scored_mean_iou"]) for run in runs] == [0.3, 0.3]
    text = tables.markdown(arms, ["sky", "road"], title="tiny", baseline="ce")
    assert "| scored mIoU | scored difference | scored unpaired |" in text


def test_chart_draws_arms_without_results_too(tmp_path):
    picture = png(tables.chart(summary(tmp_path, ["sky", "road"]), title="tiny", baseline="ce"))
    assert picture[:4] == b"\x89PNG"
