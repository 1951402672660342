"""Mixtures: their members and rates, by the paper's formula and by fixed weights."""

import pytest

from t5x_lite.errors import UserError

mixing = pytest.importorskip("t5x_lite.tasks.mixing")

import seqio  # noqa: E402

from t5x_lite.tasks import mixtures, multilingual, records  # noqa: E402, F401
from t5x_lite.tasks.mixing import Rates  # noqa: E402

# Training examples of TFDS, where ours are not counted on a machine without them.
COUNTS = {
    "glue/cola": 8551, "glue/sst2": 67349, "glue/mrpc": 3668, "glue/qqp": 363849, "glue/stsb": 5749,
    "glue/mnli": 392702, "glue/qnli": 104743, "glue/rte": 2490, "super_glue/boolq": 9427, "super_glue/cb": 250,
    "super_glue/copa": 400, "super_glue/multirc": 27243, "super_glue/record": 100730, "super_glue/rte": 2490,
    "super_glue/wic": 5428, "super_glue/wsc.fixed": 554, "definite_pronoun_resolution": 1322, "squad/v1.1": 87599,
    "cnn_dailymail": 287113, "wmt_t2t_translate/de-en": 4592289, "wmt15_translate/fr-en": 40853137,
    "wmt16_translate/ro-en": 610320, "c4/en": 364868892, "trivia_qa/rc": 138384,
}  # fmt: skip


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    def count(self, split):
        name = self.tfds_name if isinstance(self, records.Records) else self.tfds_dataset.name
        return COUNTS[name.partition(":")[0]]

    monkeypatch.setattr(records.Records, "num_input_examples", count)
    monkeypatch.setattr(seqio.TfdsDataSource, "num_input_examples", count)
    yield
    mixing.bind(Rates())


def rates(name, **options):
    mixing.bind(Rates(**options))
    mixture = seqio.MixtureRegistry.get(name)
    return {task.name: mixture.get_rate(task) for task in mixture.tasks}


def test_members():
    assert rates("glue_v002_proportional") == mixtures.GLUE and sum(mixtures.GLUE.values()) == 949_101
    assert rates("super_glue_v102_proportional") == mixtures.SUPER_GLUE
    assert sum(mixtures.SUPER_GLUE.values()) == 185_673
    supervised = {*mixtures.GLUE, *mixtures.SUPER_GLUE, "cnn_dailymail_v002", "squad_v010_allanswers",
                  "wmt_t2t_ende_v003", "wmt15_enfr_v003", "wmt16_enro_v003"}  # fmt: skip
    assert len(supervised) == 28
    assert set(rates("all_equal")) == {*supervised, "c4_v020_unsupervised"}
    assert set(rates("all_equal").values()) == {1.0}
    assert set(rates("en_mix")) == {
        *mixtures.GLUE,
        *mixtures.SUPER_GLUE,
        "squad_v010_allanswers",
        "c4_v020_unsupervised",
    }
    assert set(rates("large_translation_equal")) == {"wmt_t2t_ende_v003", "wmt15_enfr_v003"}
    assert rates("wsc_dpr_simple_proportional") == {
        "dpr_v001_simple": 1322, "super_glue_wsc_v102_simple_train": 259, "super_glue_wsc_v102_simple_eval": 0,
    }  # fmt: skip
    assert rates("glue_mnli_and_dev_v002") == dict.fromkeys(
        ["glue_mnli_v002", "glue_mnli_matched_v002", "glue_mnli_mismatched_v002"], 1.0
    )
    sentinel = rates("super_glue_v102_proportional_sentinel")
    assert {name.replace("_1_sentinel", ""): rate for name, rate in sentinel.items()} == mixtures.SUPER_GLUE
    assert "super_glue_wsc_v102_simple_1_sentinel_train" in sentinel and "dpr_v001_simple_1_sentinel" in sentinel
    assert not any("wnli" in name for name in seqio.MixtureRegistry.get("all_mix")._task_map)


def test_weights_are_fixed_whatever_the_limit_is():
    found = rates("all_mix", maximum=2**16, temperature=2.0)
    assert found["glue_qqp_v002"] == 363_849 and found["glue_rte_v002"] == found["super_glue_rte_v102"] == 1245
    assert found["glue_mnli_matched_v002"] == 0
    assert found["c4_v020_unsupervised"] == 1e6
    assert found["cnn_dailymail_v002"] == 256.0  # the limit comes before the temperature
    assert found["wmt15_enfr_v003"] == 256.0
    assert rates("all_mix", unsupervised=710_000)["c4_v020_unsupervised"] == 710_000
    assert rates("all_proportional", maximum=2**19)["c4_v020_unsupervised"] == 2**19


@pytest.mark.parametrize("maximum", [None, 2.0**16, 2.0**19])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_formula_of_the_paper(maximum, temperature):
    """r_m = min(e_m, K) / sum(min(e_n, K)), to the power 1/T and normalised again."""
    found = rates("all_proportional", maximum=maximum, temperature=temperature, fixed_weights=False)
    for name, tfds in (
        ("glue_mnli_v002", "glue/mnli"),
        ("glue_rte_v002", "glue/rte"),
        ("squad_v010_allanswers", "squad/v1.1"),
    ):
        limited = min(COUNTS[tfds], maximum or COUNTS[tfds])
        assert found[name] == pytest.approx(limited ** (1 / temperature))
    assert found["glue_mnli_matched_v002"] == found["super_glue_axb_v102"] == 0


@pytest.mark.parametrize(
    "left_out, gone",
    [
        ("glue_v002_proportional", list(mixtures.GLUE)),
        ("super_glue_v102_proportional", list(mixtures.SUPER_GLUE)),
        ("squad_v010_allanswers", ["squad_v010_allanswers"]),
        ("wmt16_enro_v003", ["wmt16_enro_v003"]),
    ],
)
def test_one_is_left_out(left_out, gone):
    everything, found = rates("all_proportional"), rates(f"leave_one_out_{left_out}")
    assert set(everything) - set(found) == set(gone)
    one_of_both = left_out in ("glue_v002_proportional", "super_glue_v102_proportional")
    rte = "super_glue_rte_v102" if left_out == "glue_v002_proportional" else "glue_rte_v002"
    assert found[rte] == (2490 if one_of_both else 1245)


def test_languages_are_drawn_by_the_power_of_their_size(monkeypatch):
    sizes = {"en": 3_000_000_000, "sw": 1_000_000, "yo": 50_000}
    monkeypatch.setattr(records.Records, "num_input_examples", lambda self, split: sizes[self._split_map[split]])
    mixture = seqio.MixtureRegistry.get("mc4")
    for language, size in sizes.items():
        rate = mixture.get_rate(seqio.TaskRegistry.get(f"mc4.{language}"))
        assert rate == pytest.approx(size**0.3)
    assert "byt5_mc4.zh_Latn" in seqio.TaskRegistry.names()


def test_what_cannot_be_counted_is_said():
    task = seqio.TaskRegistry.get("text_span_corruption")
    with pytest.raises(UserError, match="number of examples of text_span_corruption is not known.*tasks cache"):
        mixing.num_examples(task)
