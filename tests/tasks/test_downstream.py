"""The downstream tasks as they are registered: from original files through seqio to what is scored."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError

registry = pytest.importorskip("t5x_lite.tasks.registry")

import seqio  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "originals"))
import public  # noqa: E402

LENGTHS = {"inputs": 512, "targets": 128}

# Every registered task whose records come from TFDS or original files, with its splits and the names of its metrics.
TASKS = {
    "glue_cola_v002": ("train validation test", "matthews_corrcoef"),
    "glue_sst2_v002": ("train validation test", "accuracy"),
    "glue_mrpc_v002": ("train validation test", "f1 accuracy"),
    "glue_qqp_v002": ("train validation test", "f1 accuracy"),
    "glue_stsb_v002": ("train validation test", "pearson_corrcoef spearman_corrcoef"),
    "glue_mnli_v002": ("train validation_matched validation_mismatched test_matched test_mismatched", "accuracy"),
    "glue_mnli_matched_v002": ("validation test", "accuracy"),
    "glue_mnli_mismatched_v002": ("validation test", "accuracy"),
    "glue_qnli_v002": ("train validation test", "accuracy"),
    "glue_rte_v002": ("train validation test", "accuracy"),
    "glue_wnli_v002": ("train validation test", "accuracy"),
    "glue_wnli_v002_simple_eval": ("validation test", "accuracy"),
    "glue_ax_v002": ("test", ""),
    "super_glue_boolq_v102": ("train validation test", "accuracy"),
    "super_glue_cb_v102": ("train validation test", "mean_3class_f1 accuracy"),
    "super_glue_copa_v102": ("train validation test", "accuracy"),
    "super_glue_multirc_v102": ("train validation test", "f1 exact_match"),
    "super_glue_record_v102": ("train validation test", "em f1"),
    "super_glue_rte_v102": ("train validation test", "accuracy"),
    "super_glue_wic_v102": ("train validation test", "accuracy"),
    "super_glue_axb_v102": ("test", ""),
    "super_glue_axg_v102": ("test", ""),
    "super_glue_wsc_v102_simple_train": ("train", ""),
    "super_glue_wsc_v102_simple_eval": ("validation test", "accuracy"),
    "dpr_v001_simple": ("train test", "accuracy"),
    "squad_v010_allanswers": ("train validation", "em f1"),
    "squad_v010_context_free": ("train validation", "em f1"),
    "squad_v010_allanswers_span": ("train validation", "em f1"),
    "squad_v010": ("train validation", "em f1"),
    "trivia_qa_v010": ("train validation test", ""),
    "triviaqa_context_free": ("train validation test", "accuracy"),
    "nq_context_free": ("train validation", "accuracy"),
    "nq_open_context_free": ("train validation", "em f1"),
    "cnn_dailymail_v002": ("train validation test", "rouge1 rouge2 rougeLsum"),
    "xsum_v110": ("train validation test", "rouge1 rouge2 rougeLsum"),
    "wmt14_ende_v003": ("train validation test", "bleu"),
    "wmt14_enfr_v003": ("train validation test", "bleu"),
    "wmt15_enfr_v003": ("train validation test", "bleu"),
    "wmt16_enro_v003": ("train validation test", "bleu"),
    "wmt19_ende_v003": ("train validation", "bleu"),
    "wmt_t2t_ende_v003": ("train validation test", "bleu"),
}

SENTINEL_COPIES = {
    "super_glue_boolq_v102_1_sentinel", "super_glue_wsc_v102_simple_1_sentinel_train",
    "super_glue_wsc_v102_simple_1_sentinel_eval", "dpr_v001_simple_1_sentinel",
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    public.write(folder)
    # Of the records that are only to be read some are no Winograd schemas.
    wsc = [
        {"text": "Ann gave the cup to Bea because she was thirsty.", "label": True, "idx": 0,
         "target": {"span1_index": 5, "span1_text": "Bea", "span2_index": 7, "span2_text": "she"}},
        {"text": "The cup fell off the shelf when it broke.", "label": False, "idx": 1,
         "target": {"span1_index": 0, "span1_text": "The cup", "span2_index": 7, "span2_text": "it"}},
    ]  # fmt: skip
    for split in ("train", "val", "test"):
        public.objects(folder / "WSC" / f"{split}.jsonl", *wsc)
    context = "The tower, built in 1889, stands in Paris."
    asked = [
        {"id": str(k), "question": question, "answers": [{"text": answer, "answer_start": context.index(answer)}]}
        for k, (question, answer) in enumerate([("When was it built?", "1889"), ("What is it?", "The tower")])
    ]
    squad = {"data": [{"title": "Tower", "paragraphs": [{"context": context, "qas": asked}]}], "version": "1.1"}
    for split in ("train", "dev"):
        (folder / "squad" / f"{split}-v1.1.json").write_text(json.dumps(squad))
        public.put(folder / "WNLI" / f"{split}.tsv", "index\tsentence1\tsentence2\tlabel",
                   "0\tAnn gave the cup to Bea because she was thirsty.\tBea was thirsty.\t1")  # fmt: skip
    for split in ("train", "dev"):
        row = {"question": "who is it", "answer": ["Ann", "Bea"]}
        public.objects(folder / "nq_open" / f"NQ-open.{split}.jsonl", row)
    for k in range(7):  # the documents that the articles name
        told = "the chipmunks were made by david seville in a studio. " + "They sang many songs. " * 20
        public.put(folder / f"triviaqa-rc/evidence/wikipedia/Page{k}.txt", told)
    public.put(folder / "wmt14/train.fr-en.fr", "Bonjour.", "Merci beaucoup à vous tous.")
    public.put(folder / "wmt14/train.fr-en.en", "Hello.", "Thank you all very much.")
    for split in ("validation", "test"):
        public.put(folder / f"wmt14/{split}.fr-en.fr", "Il est tard dans la nuit.")
        public.put(folder / f"wmt14/{split}.fr-en.en", "It is late at night.")
    public.put(
        folder / "WNLI" / "test.tsv", "index\tsentence1\tsentence2", "0\tThe cup fell and it broke.\tThe cup broke."
    )
    return str(folder)


@pytest.fixture
def opened(data_dir):
    return lambda name: registry.prepare(name, vocabulary="bytes", data_dir=data_dir)


def examples(task, split, **options):
    dataset = task.get_dataset({**LENGTHS, **options}, split=split, shuffle=False, seed=0, num_epochs=1)
    return list(dataset.as_numpy_iterator())


def shown(value):
    return value.decode("utf-8") if isinstance(value, bytes) else value


def test_these_are_all_that_are_registered(opened):
    opened("glue_cola_v002")
    sources = {
        name
        for name in seqio.TaskRegistry.names()
        if type(seqio.TaskRegistry.get(name).source).__name__ == "Records"
        and "mc4" not in name
        and not name.startswith("records_")  # of other tests
    }
    copies = {name for name in sources if "_1_sentinel" in name}
    assert sources - copies == set(TASKS) and copies >= SENTINEL_COPIES


@pytest.mark.parametrize("name", TASKS)
def test_a_task_from_original_files(opened, name):
    splits, metrics = TASKS[name]
    task = opened(name)
    assert set(task.splits) == set(splits.split())
    for split in task.splits:
        found = examples(task, split)
        # TriviaQA needs an answer that occurs in a document.
        assert found or name == "trivia_qa_v010" and split == "test", split
        for example in found:
            assert len(example["inputs"]) > 1 and example["inputs"][-1] == example["targets"][-1] == 1
            assert example["inputs"].dtype == np.int32
    split = next((s for s in ("validation", "validation_matched", "train") if s in task.splits), None)
    if split is None or not metrics:
        assert not task.metric_fns
        return
    # Scored by its own answers, every metric is at its best; what is undefined for so few examples is nan.
    found = examples(task, split)
    texts = [shown(example["targets_pretokenized"]) for example in found]
    targets = [task.postprocess_fn(text, example=e, is_target=True) for text, e in zip(texts, found)]
    outputs = [task.postprocess_fn(text, example=e, is_target=False) for text, e in zip(texts, found)]
    values = {}
    for metric in task.metric_fns:
        values |= metric(targets, outputs)
    assert set(values) == set(metrics.split())
    if name in ("super_glue_wsc_v102_simple_eval", "glue_wnli_v002_simple_eval"):
        return  # the candidate is right or wrong by the label
    if name == "squad_v010_allanswers_span":
        return  # t5 counts words otherwise when it cuts a span out than when it makes one
    # There are no pairs of words in a summary of one word, and no four words in a short sentence.
    values = {key: value for key, value in values.items() if value or key not in ("rouge2", "bleu")}
    assert all(np.isnan(value) or value == pytest.approx(100) or value == 0 and "corr" in key
               for key, value in values.items()), values  # fmt: skip


def test_texts_as_models_were_trained_on_them(opened):
    def first(name, split="train"):
        example = examples(opened(name), split)[0]
        return shown(example["inputs_pretokenized"]), shown(example["targets_pretokenized"])

    inputs, targets = first("glue_cola_v002")
    assert inputs.startswith("cola sentence: ") and targets == "acceptable"
    inputs, targets = first("glue_mnli_v002")
    assert inputs.index("mnli hypothesis: ") == 0 < inputs.index(" premise: ")
    assert targets in ("entailment", "neutral", "contradiction")
    inputs, targets = first("super_glue_boolq_v102")
    assert inputs.startswith("boolq passage: ") and " question: " in inputs and targets in ("False", "True")
    inputs, _ = first("glue_ax_v002", "test")
    assert inputs.startswith("mnli hypothesis: ")
    inputs, _ = first("super_glue_axb_v102", "test")
    assert inputs.startswith("rte hypothesis: ")
    inputs, targets = first("squad_v010_allanswers")
    assert inputs.startswith("question: ") and " context: " in inputs
    inputs, _ = first("squad_v010_context_free")
    assert inputs.startswith("squad trivia question: ")
    _, targets = first("squad_v010_allanswers_span")
    assert targets.startswith("start: ") and " end: " in targets
    for name, language in (
        ("wmt14_enfr_v003", "French"),
        ("wmt16_enro_v003", "Romanian"),
        ("wmt19_ende_v003", "German"),
    ):
        assert first(name)[0].startswith(f"translate English to {language}: ")
    assert first("cnn_dailymail_v002")[0].startswith("summarize: ")
    assert first("nq_open_context_free")[0].startswith("trivia question: ")


def test_labels_that_are_not_told_become_unk(opened):
    for name in ("glue_cola_v002", "super_glue_boolq_v102", "glue_ax_v002"):
        assert {shown(e["targets_pretokenized"]) for e in examples(opened(name), "test")} == {"<unk>"}


def test_a_copy_with_a_sentinel(opened):
    plain = examples(opened("super_glue_boolq_v102"), "train")
    copy = examples(opened("super_glue_boolq_v102_1_sentinel"), "train")
    top = 259 - 1
    for a, b in zip(plain, copy, strict=True):
        assert b["inputs"].tolist() == [*a["inputs"][:-1], top, 1]
        assert b["targets"].tolist() == [top, *a["targets"]]


def test_too_long_trivia_keeps_its_answer(opened):
    task = opened("trivia_qa_v010")
    whole = examples(task, "train", inputs=4096)
    for example in examples(task, "train", inputs=120):
        answer = example["targets"][:-1].tolist()
        assert len(example["inputs"]) <= 120
        text = example["inputs"].tolist()
        # The end of sequence takes the place of the window's last token.
        assert any(text[k : k + len(answer) - 1] == answer[:-1] for k in range(len(text)))
    assert whole


def test_data_that_is_not_there_says_what_to_download(tmp_path):
    with pytest.raises(UserError, match=r"glue/rte:1.0.0.*missing is train.tsv.*RTE.*download https://.*RTE.zip"):
        registry.prepare("glue_rte_v002", vocabulary="bytes", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="DATA_DIR is not set|DATA_DIR to"):
        registry.prepare("squad_v010_allanswers", vocabulary="bytes")


def test_a_mixture_names_all_that_is_missing(tmp_path):
    with pytest.raises(
        UserError, match=r"8 tasks of super_glue_v102_proportional have no data: dpr_v001_simple, .*wic"
    ):
        only = tmp_path / "WSC"
        for split in ("train", "val", "test"):
            public.objects(only / f"{split}.jsonl", {"text": "a b c", "idx": 0})
        registry.prepare("super_glue_v102_proportional", vocabulary="bytes", data_dir=str(tmp_path))
