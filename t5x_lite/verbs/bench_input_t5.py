"""The peer of `bench input`: seqio's whole pipeline with t5's span corruption, as `t5.data.tasks` puts it together.

It reads the same files: TFRecords by seqio's own source, other formats, for which t5 has none, by ours.
"""

import functools
import time

from t5x_lite.verbs.bench_train import Step

_NAME = "t5x_lite_bench_input_t5"


def whole_pass(work) -> tuple[dict, Step]:
    """Passes over the batches that seqio packs, in order; for a `bench_train.Contestant` with a Workload."""
    from t5x_lite.verbs import bench_input

    batches = _batches(work, _register(work).seed, shuffle=False)

    def step() -> dict:
        start = time.perf_counter()
        iterator = batches.as_numpy_iterator()
        # As ours: the iterator goes when this function returns.
        return bench_input.counted(iterator) | {"wall_s": time.perf_counter() - start}

    return {}, step


def first_batch(work) -> tuple[dict, Step]:
    """Seconds from where everything is imported to the first batch, shuffled."""
    from t5x_lite.tasks import quiet

    quiet.load_tensorflow()
    import t5.data.preprocessors  # noqa: F401

    start = time.perf_counter(), time.process_time()
    job = _register(work)
    next(_batches(work, job.seed, shuffle=True).as_numpy_iterator())
    return {"wall_s": time.perf_counter() - start[0], "cpu_s": time.process_time() - start[1]}, dict


def _batches(work, seed: int, shuffle: bool):
    import seqio
    import tensorflow as tf

    dataset = seqio.get_dataset(
        mixture_or_task_name=_NAME,
        task_feature_lengths=work.lengths,
        dataset_split="train",
        shuffle=shuffle,
        seed=seed,
        feature_converter=seqio.EncDecFeatureConverter(pack=True),
        use_cached=False,
    )
    return dataset.batch(work.batch).prefetch(tf.data.AUTOTUNE)


def _register(work):
    """Registers the peer's task over the source of ours, and returns the job."""
    from t5x_lite.verbs import bench_input

    job, task, _ = bench_input.opened(work)
    import seqio
    import t5.data.preprocessors

    from t5x_lite.tasks import vocabulary

    words = vocabulary.load(job.vocabulary)
    seqio.TaskRegistry.add(
        _NAME,
        source=_source(task.source),
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            t5.data.preprocessors.span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={f: seqio.Feature(vocabulary=words, add_eos=True) for f in ("inputs", "targets")},
        metric_fns=[],
    )
    return job


def _source(source):
    import seqio
    import tensorflow as tf

    from t5x_lite.tasks import documents, sources

    if isinstance(source, sources.Documents):
        files = source.list_shards("train")
        if {documents.file_format(path) for path in files} == {("tfrecord", False)}:
            description = {"text": tf.io.FixedLenFeature([], tf.string)}
            return seqio.TFExampleDataSource({"train": files}, description)
    return source
