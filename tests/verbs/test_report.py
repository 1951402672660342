"""report: one page that needs nothing else, holds what the files say, and says what is wrong with them."""

import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from etils import epath

from t5x_lite import cli
from t5x_lite.errors import UserError
from t5x_lite.verbs import report
from t5x_lite.verbs.report_chart import Series, chart, compact, log_ticks, number, thinned, ticks

VOID = {"meta", "line", "circle", "polyline"}


def line(step, **more):
    return {
        "step": step, "loss": 9.0 - step / 100, "accuracy": step / 1000, "grad_norm": 1.5, "learning_rate": 0.01,
        "tokens_seen": step * 1000, "tokens_per_second": 5000.0, "mfu": None, "input_wait_fraction": 0.0,
        "nonfinite_steps": 0, **more,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    (tmp_path / "eval").mkdir()
    write(tmp_path / "metrics.jsonl", [line(s) for s in (100, 200, 300)])
    write(
        tmp_path / "eval" / "results.jsonl",
        [
            {"step": 200, "task": "<b>cola</b>", "split": "validation", "loss": 4.25, "accuracy": 0.5, "tokens": 99},
            {
                "step": 300,
                "task": "demo",
                "split": "validation",
                "non_sentinel_loss": 3.5,
                "baseline_unigram_loss": 6.75,
            },
        ],
    )
    write(
        tmp_path / "eval" / "samples.jsonl",
        [
            {
                "inputs": "a <extra_id_0> & <script>x</script>",
                "targets": "<extra_id_0> b",
                "prediction": "<extra_id_0> c",
            }
        ],
    )
    (tmp_path / "checkpoints" / "300" / "state").mkdir(parents=True)
    (tmp_path / "config.gin").write_text("TRAIN_STEPS = 400\nNAME = '<&>'\n")
    return tmp_path


def write(path, lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


class Page(HTMLParser):
    """Collects tags, checks that they nest, and joins the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(directory):
    text = report.write(epath.Path(directory)).read_text()
    return text, Page(text)


def test_the_page_is_self_contained_and_escaped(run):
    text, page = page_of(run)
    assert "script" not in page.tags and "link" not in page.tags and "b" not in page.tags
    assert not any(name in ("src", "href") for name, _ in page.attributes)
    assert "url(" not in text and "http:" not in text and "https:" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert "<script>x</script>" in page.text and "<b>cola</b>" in page.text and "NAME = '<&>'" in page.text


def test_the_page_holds_what_the_files_say(run):
    _, page = page_of(run)
    for shown in ("300", "of 400", "not finished", "4.25", "6.75", "300,000", "baseline unigram loss", "Steps 300"):
        assert shown in page.text, shown
    assert page.tags.count("mark") == 3
    (run / "DONE").touch()
    assert "not finished" not in page_of(run)[1].text


def test_a_run_just_begun_has_a_page_too(tmp_path):
    # One line, a loss that was not finite, and a second line cut short by a kill.
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line(1, loss=None, grad_norm=None)) + '\n{"step": 2, "lo')
    _, page = page_of(tmp_path)
    assert "none" in page.text and "Evaluations" not in page.text and "Samples" not in page.text


def test_metrics_of_every_kind_fit_the_table(run):
    """Texts of one line are cells; longer ones and what was not finite leave the page as it is."""
    results = {"step": 9, "task": "t", "split": "s", "loss": None, "note": "fine <b>", "page": "a\nb"}
    write(run / "eval" / "results.jsonl", [results])
    text, page = page_of(run)
    assert "<td>fine &lt;b&gt;</td>" in text and '<td class="number">–</td>' in text
    assert "page" not in page.text.split("Evaluations")[1].split("Samples")[0]


def test_what_is_left_out_is_said(run):
    many = [{"step": s, "task": "t", "split": "validation", "loss": 1.0} for s in range(1, 101)]
    write(run / "eval" / "results.jsonl", many)
    _, page = page_of(run)
    assert "40 earlier ones are in eval/results.jsonl" in page.text


def test_wrong_directories_are_refused(tmp_path, capsys):
    assert cli.run(["report", str(tmp_path / "no")]) == 2
    assert "is no model directory. There is no such folder." in capsys.readouterr().err
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "has nothing to report. It holds no metrics.jsonl" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n')
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is no JSON.*Take that line out"):
        report.write(epath.Path(tmp_path))


@pytest.mark.parametrize("low, high", [(0, 1), (0.1, 9.7), (3.01, 3.09), (-5, 5), (0, 1e-5), (1, 3e6), (0, 262_144)])
def test_ticks_are_few_round_and_evenly_spaced(low, high):
    inner, outer = ticks(low, high), ticks(low, high, outward=True)
    assert 2 <= len(inner) <= 6 and len(outer) <= 8
    assert low - 1e-9 <= inner[0] and inner[-1] <= high + 1e-9
    assert outer[0] <= low + 1e-9 and outer[-1] >= high - 1e-9
    steps = [b - a for a, b in zip(outer, outer[1:])]
    assert all(math.isclose(s, steps[0], rel_tol=1e-6) for s in steps)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-6


def test_log_ticks_lie_in_the_range():
    assert log_ticks(0.15, 12) == pytest.approx([0.2, 0.5, 1, 2, 5, 10])
    assert log_ticks(0.01, 2e4) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000, 1e4])
    assert all(2.1 <= t <= 4.9 for t in log_ticks(3.1, 3.4)) and log_ticks(3.1, 3.4)


def test_thinning_keeps_spikes_gaps_and_order():
    points = [(s, 1.0) for s in range(10_000)]
    points[4321] = (4321, 50.0)
    points[7654] = (7654, None)
    kept = thinned(points, 500)
    assert len(kept) < 600 and kept == sorted(kept, key=lambda p: p[0])
    assert (4321, 50.0) in kept and (7654, None) in kept
    assert thinned(points[:100], 500) == points[:100]


@pytest.mark.parametrize("points", [[(5, 2.0)], [(1, 2.0), (2, 2.0)], [(1, 0.0), (2, None), (3, 4.0)]])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_stays_inside_its_box(points, log):
    drawn = chart("A & B", [Series("<x>", points)], "step", "y", [("level", 3.0)], log=log)
    svg = ElementTree.fromstring(drawn).find("svg")
    width, height = map(float, svg.get("viewBox").split()[2:])
    values = [v for _, v in points if v is not None]
    marks = svg.findall("circle")
    assert len(marks) == len(values)
    for mark in marks:
        assert 0 <= float(mark.get("cx")) <= width and 0 <= float(mark.get("cy")) <= height
    heights = [float(m.get("cy")) for m in marks]
    # Greater values are higher up.
    assert sorted(heights, reverse=True) == [h for _, h in sorted(zip(values, heights))]


def test_a_chart_without_values_is_left_out():
    assert chart("t", [Series("a", [(1, None)])], "x", "y") == ""


def test_numbers_are_for_people():
    assert [number(v) for v in (0, 7, 12345, 1_500_000, 2.73149, 0.0005, None)] == [
        "0", "7", "12,345", "1.5M", "2.731", "0.0005", "–",
    ]  # fmt: skip
    assert [compact(v) for v in (5000, 200_000, 2e6)] == ["5,000", "200k", "2M"]
