"""The pretraining tasks: span corruption of C4 and its variants, Wikipedia, files of one's own, and the demo corpus.

C4 and Wikipedia are read from TFDS (DATA_DIR); the TFDS names and versions are those
of `t5.data.tasks` (google-research/text-to-text-transfer-transformer). Own files are
named by DATA_GLOB and VALIDATION_GLOB. Import registers the tasks; it reads no data.
"""

import functools

import seqio

from t5x_lite.tasks import corpus, objectives, sources, vocabulary


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

for _name, _source in _SOURCES.items():
    seqio.TaskRegistry.add(
        f"{_name}_span_corruption",
        source=_source,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
            objectives.span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            feature: seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=True) for feature in ("inputs", "targets")
        },
        metric_fns=[],
    )
