import base64
import dataclasses
import html.parser
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from kseg.analysis.failures import Example, confused_pairs
from kseg.analysis.features import FeatureCollector
from kseg.analysis.report import Activation, RunReport, render
from kseg.evaluation.metrics import Scores

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOID = {"meta", "img", "br", "link", "hr", "input"}
NAMES = ["sky", "a <b>& road", "car"]
PALETTE = [[70, 130, 180], [255, 0, 200], [0, 0, 142]]


def example(name, seed, size=(30, 40)):
    rng = np.random.default_rng(seed)
    truth = np.full(size, 1, "uint8")
    truth[:, :10] = 255
    image = rng.integers(0, 256, (*size, 3)).astype("uint8")
    return Example(name, image, truth, [np.where(truth == 255, 0, truth)], [0.25 * seed])


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    collector = FeatureCollector(3, 4)
    collector.add(rng.normal(size=(40, 4)).astype("float32"), np.arange(40) % 2)
    matrix = np.array([[6, 2, 0], [0, 12, 0], [0, 0, 0]])
    examples = [example("first.png", 1), example("<second>", 2)]
    return RunReport(
        name="runs & <more>",
        dataset="tiny",
        split="val",
        checkpoint="best",
        config={
            "name": "tiny",
            "model": {"head": {"name": "ocr"}, "backbone": {"name": "hrnet_w18"}},
            "contrast": [{"name": "multi_scale", "temperature": 0.125}],
            "train": {"steps": 4711, "clip_norm": None, "jit_compile": True, "sizes": [3, 5]},
        },
        environment={"python": "3.99", "packages": {"keras": "3.77"}},
        class_names=NAMES,
        palette=PALETTE,
        categories={"outside": [0, 1], "vehicle": [2]},
        groups={"rare & small": [0, 2]},
        scores=Scores(matrix),
        image_mean_iou={"first.png": 0.5, "<second>": 0.25},
        train={"loss/loss": ([1, 2], [2.0, 1.0]), "learning_rate": ([1, 2], [0.1, 0.2])},
        evaluation={"mean_iou": ([2], [0.5])},
        examples=examples,
        worst=examples[::-1],
        pairs=confused_pairs(matrix, 5),
        statistics=collector.statistics(),
        unit_norm=True,
        layouts={"pixels": (rng.normal(size=(9, 2)), np.arange(9) % 3)},
        activations=[Activation(2, "first.png", examples[0].image, {"c5": np.eye(3)})],
        feature_colors=[np.zeros((4, 5, 3), "uint8")] * 2,
    )


@pytest.fixture(scope="module")
def page(report):
    return render(report)


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and records their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def check_self_contained(text):
    """Fails if a page refers to anything outside itself; returns the parsed page."""
    reader = Reader(text)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"a script in {tag}"
            if name in ("src", "srcset", "data", "action"):
                assert value.startswith("data:image/")
            elif name in ("href", "xlink:href"):
                assert value[0] == "#"
                assert value[1:] in ids
            else:
                assert "//" not in (value or "")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    return reader


def test_page_is_self_contained(page):
    reader = check_self_contained(page)
    policy = next(m["content"] for m in reader.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_report_is_complete(page):
    reader = Reader(page)
    text = " ".join(" ".join(reader.text).split())
    # IoU: 6 of 8, 12 of 14; class 2 is nowhere. Mean accuracy: (6 / 8 + 1) / 2.
    for told in (
        "runs & <more>",
        "ocr on hrnet_w18, multi_scale; tiny, split val, 2 images; checkpoint best",
        "75.00",
        "85.71",
        f"{100 * (0.75 + 12 / 14) / 2:.2f} %",
        "90.00 %",
        "87.50 %",
        "outside 100.00",  # No pixel leaves the category.
        "vehicle -",
        "rare & small 75.00",  # Only one of its classes occurs.
        "4711",
        "0.125",
        "3.99",
        "packages.keras 3.77",
        "clip_norm -",
        "jit_compile yes",
        "sizes 3, 5",
        "Median 37.50 %",
        "A is computed exactly on a sample of at most 20 pixels",
    ):
        assert told in text, told
    assert text.count("<second>: mean IoU 50.00 %") == 2
    # The only mistake: a quarter of the sky is road.
    assert re.search(r"sky\s+a <b>& road\s+25\.0\s+2\b", text)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert [f"#{title.lower()}" for title in headings] == [a["href"] for a in reader.of("a")]
    assert [title["aria-label"] for title in reader.of("svg")] == [
        "Training curves",
        "Mean IoU per image",
        "t-SNE: pixels",
    ]
    # Twice two examples of four pictures, two feature maps beside images, one Grad-CAM.
    assert len(reader.of("img")) == 2 * 2 * 4 + 2 * 2 + 2
    assert all(image["alt"] for image in reader.of("img"))


def test_pictures_are_what_they_should_be(page, report):
    image = next(i for i in Reader(page).of("img") if i["alt"] == "truth of first.png")
    kind, data = image["src"].split(";base64,")
    assert kind == "data:image/png"
    content = np.frombuffer(base64.b64decode(data), "uint8")
    colors = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
    assert colors.shape[:2] == (int(image["height"]), int(image["width"])) == (30, 40)
    np.testing.assert_array_equal(colors[:, 10:], np.broadcast_to(PALETTE[1], (30, 30, 3)))


def test_rendering_is_deterministic(page, report):
    assert render(report) == page


def test_a_run_that_has_little(report):
    nothing = FeatureCollector(3, 4).statistics()
    bare = dataclasses.replace(
        report,
        scores=Scores(np.zeros((3, 3), int)),
        image_mean_iou={},
        categories={},
        groups={},
        train={},
        evaluation={},
        examples=[],
        worst=[],
        pairs=[],
        statistics=nothing,
        layouts={},
        activations=[],
        feature_colors=[],
    )
    text = render(bare)
    check_self_contained(text)
    assert "no TensorBoard events" in text
    assert "nan" not in text.lower()
    assert "category" not in text


def test_many_classes(report):
    names = [f"class {i}" for i in range(40)]
    collector = FeatureCollector(40, 2)
    collector.add(np.ones((3, 2), "float32"), np.array([0, 1, 39]))
    many = dataclasses.replace(
        report,
        class_names=names,
        palette=[[5 * i, 0, 0] for i in range(40)],
        scores=Scores(np.eye(40, dtype=int)),
        statistics=collector.statistics(),
    )
    reader = check_self_contained(render(many))
    assert "Confusion matrix" in [image["alt"] for image in reader.of("img")]


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


def browse(page, folder, *options):
    """Opens a page in a headless browser."""
    (folder / "report.html").write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *options]
    url = (folder / "report.html").as_uri()
    result = subprocess.run([*command, url], capture_output=True, text=True, timeout=50)
    assert result.returncode == 0, result.stderr
    # The console reports violations of the policy and failed loads.
    assert "CONSOLE" not in result.stderr, result.stderr


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(page, scheme, tmp_path):
    colors = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    browse(page, tmp_path, colors, "--window-size=1280,3600", f"--screenshot={tmp_path}/shot.png")
    shot = cv2.imread(str(tmp_path / "shot.png"))[..., ::-1].astype(int)
    assert shot.shape == (3600, 1280, 3)
    paper = {"light": (246, 247, 249), "dark": (18, 21, 26)}[scheme]
    np.testing.assert_array_equal(shot[2, 2], paper)

    def pixels(color):
        return (np.abs(shot - color).max(axis=-1) <= 2).sum()

    # Truth and prediction of two examples, twice, about 270 pixels wide, three quarters of each.
    assert pixels(PALETTE[1]) > 8 * 0.7 * 270 * 200
    ink = {"light": (26, 32, 41), "dark": (228, 232, 238)}[scheme]
    assert pixels(ink) > 2000, "text"


@needs_chromium
def test_prints(page, tmp_path):
    browse(page, tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", content)) >= 2
