"""The downstream tasks of the T5 paper and their relatives, by the names of `t5.data.tasks`.

Each is a source of records, a text format, and what its outputs are scored with (google-research/
text-to-text-transfer-transformer; closed-book questions are those of its notebook t5-trivia). Records come from TFDS or
from the original public files in DATA_DIR. Import registers the tasks; it reads no data.
"""

from collections.abc import Callable, Sequence
from functools import partial

import seqio
import tensorflow as tf

from t5x_lite.tasks import metrics, postprocessors, vocabulary
from t5x_lite.tasks.formats import glue, squad, summarization, superglue, translation, trivia, winograd
from t5x_lite.tasks.in_python import one_to_many, one_to_one
from t5x_lite.tasks.records import Records

_TEXT = tf.TensorSpec([], tf.string)
_TEXTS = tf.TensorSpec([None], tf.string)
_NUMBER = tf.TensorSpec([], tf.int32)

_PAIR = {"inputs": _TEXT, "targets": _TEXT}
_CLASSIFIED = _PAIR | {"idx": _NUMBER}

_FEATURES = {
    "inputs": seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=True, required=False),
    "targets": seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=True),
}


def _register(
    name: str,
    source: Records,
    preprocessor: Callable,
    metric_fns: Sequence[Callable] = (),
    postprocess_fn: Callable | None = None,
    after_tokens: Sequence[Callable] = (),
) -> None:
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            preprocessor,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            *after_tokens,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=_FEATURES,
        metric_fns=list(metric_fns),
        postprocess_fn=postprocess_fn,
    )


# ----------------------------------------------------------------------------------------------------------------------
# GLUE

_ENTAILMENT = ("entailment", "neutral", "contradiction")
_TWO_WAY = ("entailment", "not_entailment")
_NO_YES = ("False", "True")

# Set of TFDS: (name in the inputs, labels, metrics).
_GLUE = {
    "cola": ("cola", ("unacceptable", "acceptable"), [metrics.matthews_corrcoef]),
    "sst2": ("sst2", ("negative", "positive"), [metrics.accuracy]),
    "mrpc": ("mrpc", ("not_equivalent", "equivalent"), [metrics.f1_score_with_invalid, metrics.accuracy]),
    "qqp": ("qqp", ("not_duplicate", "duplicate"), [metrics.f1_score_with_invalid, metrics.accuracy]),
    "mnli": ("mnli", _ENTAILMENT, [metrics.accuracy]),
    "mnli_matched": ("mnli", _ENTAILMENT, [metrics.accuracy]),
    "mnli_mismatched": ("mnli", _ENTAILMENT, [metrics.accuracy]),
    "qnli": ("qnli", _TWO_WAY, [metrics.accuracy]),
    "rte": ("rte", _TWO_WAY, [metrics.accuracy]),
    "wnli": ("wnli", ("not_entailment", "entailment"), [metrics.accuracy]),
    # Has no labels that are known; it is asked as MNLI.
    "ax": ("mnli", _ENTAILMENT, []),
}


def _label(names: Sequence[str]) -> Callable:
    return partial(postprocessors.string_label_to_class_id, label_classes=names)


for _set, (_named, _labels, _metrics) in _GLUE.items():
    _register(
        f"glue_{_set}_v002",
        Records(f"glue/{_set}:1.0.0"),
        one_to_one(partial(glue.glue, benchmark_name=_named, label_names=_labels), _CLASSIFIED),
        _metrics,
        _label(_labels),
    )

_register(
    "glue_stsb_v002",
    Records("glue/stsb:1.0.0"),
    one_to_one(glue.stsb, _CLASSIFIED),
    [metrics.pearson_corrcoef, metrics.spearman_corrcoef],
    postprocessors.string_to_float,
)

_register(
    "glue_wnli_v002_simple_eval",
    Records("glue/wnli:1.0.0", splits=("validation", "test")),
    one_to_one(
        winograd.wnli_simple, _CLASSIFIED | {"premise": _TEXT, "hypothesis": _TEXT, "label": _NUMBER}
    ),
    [metrics.accuracy],
    postprocessors.wsc_simple,
)  # fmt: skip

# ----------------------------------------------------------------------------------------------------------------------
# SuperGLUE

_CB = ("entailment", "contradiction", "neutral")
_CHOICES = ("choice1", "choice2")

# Set of TFDS: (format, features beside inputs and targets, labels, metrics, postprocessor where it is not the label's).
_SUPER_GLUE = {
    "boolq": (partial(glue.glue, benchmark_name="boolq"), {"idx": _NUMBER}, _NO_YES, [metrics.accuracy], None),
    "cb": (
        partial(glue.glue, benchmark_name="cb"), {"idx": _NUMBER}, _CB,
        [metrics.mean_multiclass_f1(num_classes=3), metrics.accuracy], None,
    ),
    "copa": (partial(glue.glue, benchmark_name="copa"), {"idx": _NUMBER}, _CHOICES, [metrics.accuracy], None),
    "multirc": (
        superglue.multirc, {f"idx/{part}": _NUMBER for part in ("paragraph", "question", "answer")}, _NO_YES,
        [metrics.multirc_f1_over_all_answers, metrics.mean_group_metric(metrics.all_match)], postprocessors.multirc,
    ),
    "rte": (partial(glue.glue, benchmark_name="rte"), {"idx": _NUMBER}, _TWO_WAY, [metrics.accuracy], None),
    "wic": (superglue.wic, {"idx": _NUMBER}, _NO_YES, [metrics.accuracy], None),
    "axb": (superglue.axb, {"idx": _NUMBER}, _TWO_WAY, [], None),
    "axg": (partial(glue.glue, benchmark_name="rte"), {"idx": _NUMBER}, _TWO_WAY, [], None),
}  # fmt: skip

for _set, (_format, _more, _labels, _metrics, _postprocess) in _SUPER_GLUE.items():
    _register(
        f"super_glue_{_set}_v102",
        Records(f"super_glue/{_set}:1.0.2"),
        one_to_one(partial(_format, label_names=_labels), _PAIR | _more),
        _metrics,
        _postprocess or _label(_labels),
    )

_register(
    "super_glue_record_v102",
    Records("super_glue/record:1.0.2"),
    one_to_many(superglue.record, _PAIR | {"answers": _TEXTS, "idx/passage": _NUMBER, "idx/query": _NUMBER}),
    [metrics.deduplicate_metric(metrics.squad)],
    postprocessors.record,
)

# Trained on the right referents alone, tested on all.
_register(
    "super_glue_wsc_v102_simple_train",
    Records("super_glue/wsc.fixed:1.0.2", splits=("train",)),
    one_to_one(partial(winograd.wsc_simple, correct_referent_only=True), _CLASSIFIED | {"label": _NUMBER}),
)
_register(
    "super_glue_wsc_v102_simple_eval",
    Records("super_glue/wsc.fixed:1.0.2", splits=("validation", "test")),
    one_to_one(winograd.wsc_simple, _CLASSIFIED | {"label": _NUMBER}),
    [metrics.accuracy],
    postprocessors.wsc_simple,
)
_register(
    "dpr_v001_simple",
    Records("definite_pronoun_resolution:1.1.0"),
    one_to_one(winograd.definite_pronoun_resolution_simple, _PAIR),
    [metrics.accuracy],
)

# The same with a sentinel behind the inputs and before the targets, like what span corruption has taught.
for _name in [name for name in seqio.TaskRegistry.names() if name.startswith(("super_glue_", "dpr_"))]:
    seqio.experimental.add_task_with_sentinels(_name, num_sentinels=1)

# ----------------------------------------------------------------------------------------------------------------------
# Question answering

_SQUAD = _PAIR | {"id": _TEXT, "context": _TEXT, "question": _TEXT, "answers": _TEXTS}


def _first_answer(answer: str, example=None, is_target: bool = False) -> str | list[str]:
    return [answer] if is_target else answer


for _name, _format, _metric, _postprocess in (
    ("squad_v010_allanswers", one_to_one(squad.squad, _SQUAD), metrics.squad, postprocessors.qa),
    (
        "squad_v010_context_free", one_to_one(partial(squad.squad, include_context=False), _SQUAD),
        metrics.squad, postprocessors.qa,
    ),
    (
        "squad_v010_allanswers_span", one_to_one(squad.squad_span_space_tokenized, _SQUAD),
        metrics.span_squad, postprocessors.span_qa,
    ),
    # Deprecated by t5, where its metric fails: it is scored against the first answer alone.
    ("squad_v010", one_to_one(squad.squad, _SQUAD), metrics.squad, _first_answer),
):  # fmt: skip
    _register(_name, Records("squad/v1.1:3.0.0"), _format, [_metric], _postprocess)


def _around_the_answer(dataset, sequence_length):
    """Cuts inputs that are too long to a random window that the answer lies in; drops those that do not have it."""

    @seqio.map_over_dataset(num_seeds=1)
    def seeded(example, seed):
        return {"inputs": example["inputs"], "targets": example["targets"], "seed": seed}

    if not sequence_length or "inputs" not in sequence_length:
        return dataset
    tokens = tf.TensorSpec([None], tf.int32)
    cut = partial(trivia.truncate_inputs, length=sequence_length["inputs"])
    return one_to_one(cut, {"inputs": tokens, "targets": tokens})(seeded(dataset))


_register(
    "trivia_qa_v010",
    Records("trivia_qa/rc:1.1.0"),
    one_to_many(trivia.trivia_qa, _PAIR),
    after_tokens=[_around_the_answer],
)

# Closed book: nothing but the question. Natural Questions as its open-domain version, which is small, or as published.
_register(
    "triviaqa_context_free",
    Records("trivia_qa/unfiltered.nocontext:1.1.0"),
    one_to_one(trivia.trivia_question, _PAIR),
    [metrics.accuracy],
    postprocessors.lower_text,
)
_register(
    "nq_context_free",
    Records("natural_questions_simplified"),
    one_to_one(trivia.trivia_question, _PAIR),
    [metrics.accuracy],
    postprocessors.lower_text,
)
_register(
    "nq_open_context_free",
    Records("natural_questions_open:1.0.0"),
    one_to_one(trivia.open_question, _PAIR | {"answers": _TEXTS}),
    [metrics.trivia_qa],
    postprocessors.qa,
)

# ----------------------------------------------------------------------------------------------------------------------
# Summarization

for _name, _set, _article, _summary in (
    ("cnn_dailymail_v002", "cnn_dailymail:3.4.0", "article", "highlights"),
    ("xsum_v110", "xsum:1.1.0", "document", "summary"),
):
    _register(
        _name,
        Records(_set),
        one_to_one(partial(summarization.summarize, article_key=_article, summary_key=_summary), _PAIR),
        [metrics.rouge],
    )

# ----------------------------------------------------------------------------------------------------------------------
# Translation, from English

for _set, _language, _year in (
    ("wmt14_translate", "de", "wmt14"),
    ("wmt14_translate", "fr", "wmt14"),
    ("wmt15_translate", "fr", "wmt15"),
    ("wmt16_translate", "ro", "wmt16"),
    ("wmt19_translate", "de", "wmt19"),
    ("wmt_t2t_translate", "de", "wmt_t2t"),
):
    _register(
        f"{_year}_en{_language}_v003",
        Records(f"{_set}/{_language}-en:1.0.0"),
        one_to_one(partial(translation.translate, source_language="en", target_language=_language), _PAIR),
        [metrics.bleu],
    )
