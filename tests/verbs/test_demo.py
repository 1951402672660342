"""demo: its short form from the corpus to the report, twice in one folder, and when its whole form fails."""

import json
import re

import pytest

from t5x_lite import cli
from t5x_lite.errors import RunError, UserError
from t5x_lite.verbs import demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a short demo that has ended."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert cli.run(["demo", "--short", f"--output={folder}"]) == 0
    return folder


def comparison(text):
    """The three figures that a demo prints."""
    names = ("this model", "unigram model", "difference")
    return [float(re.search(rf"^  {name} +(-?[\d.]+)$", text, re.M)[1]) for name in names]


def test_a_demo_begun_again_shows_the_finished_model(folder, capfd):
    assert cli.run(["demo", "--short", f"--output={folder}"]) == 0
    shown, said = capfd.readouterr()
    assert "already at step 40 of 40: nothing to do" in said
    ours, baseline, difference = comparison(shown)
    assert difference == pytest.approx(baseline - ours, abs=2e-3)
    # 8,100 ids have at most log(8100) nats; a few steps have learned more than that.
    assert 0 < baseline < 9 and ours < 9
    assert len(re.findall(r"^input: .*<extra_id_0>.*<extra_id_1>.*\ntarget: .*\nprediction: ", shown, re.M)) == 4
    assert f"The report is {folder / 'report.html'}" in shown

    first, second = (
        line for line in map(json.loads, (folder / "eval/results.jsonl").read_text().splitlines())
        if "baseline_unigram_loss" in line
    )  # fmt: skip
    assert first == pytest.approx(second)
    assert second["non_sentinel_loss"] == pytest.approx(ours, abs=1e-3)


def test_the_page_needs_nothing_else(folder):
    page = (folder / "report.html").read_text()
    assert "baseline unigram loss" in page and "demo_span_corruption" in page and 'class="sample"' in page
    assert not re.search(r"(src|href)=|url\(|https?:", page)
    for line in (folder / "eval/samples.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"inputs", "targets", "prediction", "score"}


def test_the_whole_demo_fails_where_nothing_was_learned():
    demo.check_learned(5.9, 6.5, "demo")
    for ours in (6.1, float("nan")):
        with pytest.raises(RunError, match=r"should be 0\.5\. The checkpoint and the report in demo are whole\."):
            demo.check_learned(ours, 6.5, "demo")


def test_a_folder_of_another_recipe_is_moved_aside_and_one_of_others_refused(tmp_path, capfd):
    folder = tmp_path / "demo"
    for recipe, asides in (("a", 0), ("a", 0), ("b", 1), ("c", 2)):
        demo.make_room(folder, recipe)
        (folder / "kept").write_text(recipe)
        assert (folder / demo.RECIPE).read_text() == recipe
        assert len(list(tmp_path.iterdir())) == 1 + asides
    assert (tmp_path / "demo.1/kept").read_text() == "a" and (tmp_path / "demo.2/kept").read_text() == "b"
    assert f"it is now {tmp_path / 'demo.2'}, and a new one begins" in capfd.readouterr().err

    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").touch()
    with pytest.raises(UserError, match=rf"Choose another --output, or .*: rm -r {own}"):
        demo.make_room(own, "a")
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="--output=.*thesis.txt/demo cannot be written"):
        demo.make_room(own / "thesis.txt" / "demo", "a")


def test_both_forms_have_one_recipe_and_another_version_another(monkeypatch):
    recipe = demo.recipe()
    assert not re.search(r"TRAIN_STEPS = 40\b|MODEL_DIR = '/\w+/\w+", recipe)
    monkeypatch.setattr(demo, "__version__", "0.0.0")
    assert demo.recipe() != recipe
