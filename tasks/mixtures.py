"""The mixtures of the T5 paper, by the names of `t5.data.mixtures` (google-research/text-to-text-transfer-transformer).

Fixed weights are numbers of training examples. Members of weight 0 are evaluated and not trained on. Import registers
the mixtures; it reads no data.
"""

import seqio

from t5x_lite.tasks import downstream, pretraining  # noqa: F401
from t5x_lite.tasks.mixing import fixed_or_num_examples, num_examples, unsupervised

UNLABELLED = "c4_v020_unsupervised"

GLUE = {
    "glue_cola_v002": 8_551.0,
    "glue_sst2_v002": 67_349.0,
    "glue_mrpc_v002": 3_668.0,
    "glue_qqp_v002": 363_849.0,
    "glue_stsb_v002": 5_749.0,
    "glue_mnli_v002": 392_702.0,
    "glue_qnli_v002": 104_743.0,
    "glue_rte_v002": 2_490.0,
    "glue_mnli_mismatched_v002": 0.0,
    "glue_mnli_matched_v002": 0.0,
    "glue_ax_v002": 0.0,
}

# WSC and DPR take the place of WNLI, which is never trained on.
SUPER_GLUE = {
    "dpr_v001_simple": 1_322.0,
    "super_glue_wsc_v102_simple_train": 259.0,
    "super_glue_wsc_v102_simple_eval": 0.0,
    "super_glue_boolq_v102": 9_427.0,
    "super_glue_cb_v102": 250.0,
    "super_glue_copa_v102": 400.0,
    "super_glue_multirc_v102": 27_243.0,
    "super_glue_record_v102": 138_854.0,
    "super_glue_rte_v102": 2_490.0,
    "super_glue_wic_v102": 5_428.0,
    "super_glue_axb_v102": 0.0,
    "super_glue_axg_v102": 0.0,
}

_TRANSLATION = ["wmt_t2t_ende_v003", "wmt15_enfr_v003", "wmt16_enro_v003"]
_OTHERS = ["cnn_dailymail_v002", "squad_v010_allanswers", *_TRANSLATION]
_SUPERVISED = [*GLUE, *SUPER_GLUE, *_OTHERS]

_add = seqio.MixtureRegistry.add


def _with_sentinel(name: str) -> str:
    """The name that seqio gives to the copy of a task with one sentinel."""
    for ending in ("_train", "_eval"):
        if name.endswith(ending):
            return f"{name.removesuffix(ending)}_1_sentinel{ending}"
    return f"{name}_1_sentinel"


def _rate(name: str, once: bool = True):
    """The rate of a supervised task beside others.

    Args:
      name: of the task.
      once: RTE, which is in GLUE and in SuperGLUE, counts half in each.
    """
    weight = (GLUE | SUPER_GLUE).get(name)
    if weight is None:
        return num_examples
    return fixed_or_num_examples(weight * (0.5 if once and "rte" in name else 1.0))


_add("glue_v002_proportional", list(GLUE.items()))
_add("super_glue_v102_proportional", list(SUPER_GLUE.items()))
_add("super_glue_v102_proportional_sentinel", [(_with_sentinel(name), rate) for name, rate in SUPER_GLUE.items()])
_add("glue_mnli_and_dev_v002", [name for name in GLUE if "mnli" in name], default_rate=1.0)
_add(
    "wsc_dpr_simple_proportional",
    [(name, rate) for name, rate in SUPER_GLUE.items() if "wsc" in name or name.startswith("dpr")],
)

# One model for all tasks.
_add(
    "en_mix",
    [(UNLABELLED, unsupervised), *((name, num_examples) for name in [*GLUE, *SUPER_GLUE, "squad_v010_allanswers"])],
)
_add("all_equal", [*_SUPERVISED, UNLABELLED], default_rate=1.0)
_add("all_proportional", [*((name, _rate(name)) for name in _SUPERVISED), (UNLABELLED, num_examples)])
_add("all_mix", [(UNLABELLED, unsupervised), *((name, _rate(name)) for name in _SUPERVISED)])

# Pretrained on all tasks but one, to be fine-tuned on that one. GLUE is one task here, and so is SuperGLUE.
for _left_out, _members in {
    "glue_v002_proportional": list(GLUE),
    "super_glue_v102_proportional": list(SUPER_GLUE),
    **{name: [name] for name in _OTHERS},
}.items():
    _both = _left_out in _OTHERS  # GLUE and SuperGLUE are both there
    _add(
        f"leave_one_out_{_left_out}",
        [
            *((name, _rate(name, once=_both)) for name in _SUPERVISED if name not in _members),
            (UNLABELLED, num_examples),
        ],
    )

_add("large_supervised_equal", ["wmt_t2t_ende_v003", "wmt15_enfr_v003", "cnn_dailymail_v002"], default_rate=1.0)
_add(
    "large_supervised_proportional",
    ["wmt_t2t_ende_v003", "wmt15_enfr_v003", "cnn_dailymail_v002"],
    default_rate=num_examples,
)
_add("large_translation_equal", ["wmt_t2t_ende_v003", "wmt15_enfr_v003"], default_rate=1.0)
_add("squad_trivia_qa_equal", ["squad_v010_allanswers", "trivia_qa_v010"], default_rate=1.0)

# Closed-book question answering, from the notebook t5-trivia.
_add("trivia_all", ["nq_context_free", "triviaqa_context_free"], default_rate=1.0)
