"""The pretraining tasks: every objective over C4 and its variants, Wikipedia, files of one's own and the demo corpus.

C4 and Wikipedia are read from TFDS (DATA_DIR); the TFDS names and versions are those
of `t5.data.tasks` (google-research/text-to-text-transfer-transformer). Own files are
named by DATA_GLOB and VALIDATION_GLOB. Import registers the tasks; it reads no data.
"""

import functools
from collections.abc import Callable

import seqio

from t5x_lite.tasks import corpus, sources, vocabulary
from t5x_lite.tasks.objectives import packed_prefix
from t5x_lite.tasks.objectives.named import OBJECTIVES
from t5x_lite.tasks.objectives.preprocess import packed, preprocess
from t5x_lite.tasks.tokenization import tokenize


def _tfds(name: str, splits: tuple[str, ...] = ("train", "validation")) -> seqio.TfdsDataSource:
    # Read only: preparing C4 takes a cluster for days, and is never what a missing folder asks for.
    return seqio.TfdsDataSource(tfds_name=name, splits=splits, read_only=True)


_SOURCES = {
    "c4_v220": _tfds("c4/en:2.2.0"),
    "c4_noclean_v220": _tfds("c4/en.noclean:2.2.0"),
    "c4_realnewslike_v220": _tfds("c4/realnewslike:2.2.0"),
    "c4_webtextlike_v220": _tfds("c4/webtextlike:2.2.0"),
    "wikipedia_20190301_en": _tfds("wikipedia/20190301.en:1.0.0", splits=("train",)),
    "text": sources.Documents(sources.bound_files),
    "demo": sources.Documents(corpus.files),
}

_FEATURES = {feature: seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=True) for feature in ("inputs", "targets")}


def register(name: str, source: seqio.DataSource, objective: Callable) -> None:
    """Registers a pretraining task.

    Args:
      name: of the task.
      source: of records with a text.
      objective: see objectives/denoising.py.
    """
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            tokenize,
            seqio.CacheDatasetPlaceholder(),
            functools.partial(preprocess, objective=objective),
        ],
        output_features=_FEATURES,
        metric_fns=[],
    )


for _name, _source in _SOURCES.items():
    for _suffix, _objective in OBJECTIVES.items():
        register(f"{_name}_{_suffix}", _source, _objective)

# Prefix LM in full rows, for programs that take a model's features as they are (seqio.PassThroughFeatureConverter).
for _architecture, _pack, _names in (
    ("encoder_decoder", packed_prefix.pack_prefix_lm_encoder_decoder, packed_prefix.ENCODER_DECODER),
    ("decoder", packed_prefix.pack_prefix_lm_decoder_only, packed_prefix.DECODER),
):
    seqio.TaskRegistry.add(
        f"c4_prefix_lm_objective_{_architecture}_architecture",
        source=_SOURCES["c4_v220"],
        preprocessors=[
            tokenize,
            seqio.CacheDatasetPlaceholder(),
            functools.partial(
                preprocess, objective=packed_prefix.targets_for_prefix_lm_objective, names=("targets",)
            ),
            functools.partial(packed, pack=_pack, names=_names),
        ],
        output_features={
            **{name: seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=False) for name in _names},
            # What all preprocessors but the last one make.
            "targets": seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=True, required=False),
        },
        metric_fns=[],
    )  # fmt: skip

# The names that the paper's mixtures know. In t5 a gin file tells their objective; the final models' is this.
for _name, _same in {
    "c4_v020_unsupervised": "c4_v220",
    "c4_noclean_v020_unsupervised": "c4_noclean_v220",
    "c4_realnewslike_v020_unsupervised": "c4_realnewslike_v220",
    "c4_webtextlike_v020_unsupervised": "c4_webtextlike_v220",
    "wikipedia_20190301.en_v003_unsupervised": "wikipedia_20190301_en",
}.items():
    register(_name, _SOURCES[_same], OBJECTIVES["span_corruption"])
