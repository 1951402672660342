"""t5x_lite bench input: a task's pipeline from files to batches, beside seqio's with t5's preprocessors where t5 is
installed.

One pass in order over the whole training split. The stages cannot be told apart from outside while they run beside
each other, so that the pipeline is also run up to each of them: what one more stage adds in CPU seconds is its own.
Contestants are processes that pass in turns, as in bench_train.py. The first batch is that of training, shuffled, in
fresh processes.
"""

import dataclasses
import functools
import importlib.util
import itertools
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

from t5x_lite.errors import UserError
from t5x_lite.verbs.bench_train import Contestant, Step, spread

OURS, PEER = "t5x_lite", "seqio with t5"

# The stages of a task, in order. Those of seqio end and begin where its offline cache would stand.
STAGES = ("reading", "tokenisation", "objective", "packing")

# More elements than that tf.data passes over none.
_ALL = (1 << 31) - 1

# The objective that the peer has too, as the last part of a task's name.
_OF_BOTH = "_span_corruption"


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is measured.

    Args:
      gin_files, bindings: of the job.
      batch, inputs, targets: rows, and tokens of each row.
    """

    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    batch: int
    inputs: int
    targets: int

    @property
    def lengths(self) -> dict[str, int]:
        return {"inputs": self.inputs, "targets": self.targets}


def measure(args) -> dict:
    """Measures the contestants, prints the tables and returns all figures.

    Raises:
      UserError: the job or its data cannot be read.
      RunError: a contestant failed.
    """
    work = Workload(
        ("runs/pretrain.gin", *(args.gin_file or ["models/t5_1_1_small.gin"])),
        tuple(args.gin),
        args.batch_size,
        args.inputs,
        args.targets,
    )
    task = load_job(work).mixture_or_task_name
    # What passes over the data, and what makes a first batch.
    makers = {OURS: (our_pass, our_first_batch)}
    if importlib.util.find_spec("t5") is None:
        print(f"{PEER}: not measured, t5 not installed")
    elif not task.endswith(_OF_BOTH):
        print(f"{PEER}: not measured, it is set beside tasks called *{_OF_BOTH}")
    else:
        from t5x_lite.verbs import bench_input_t5

        makers[PEER] = (bench_input_t5.whole_pass, bench_input_t5.first_batch)
    passes = {stage: functools.partial(pass_up_to, stage) for stage in STAGES[:-1]}
    abouts, steps = _in_turns(passes | {name: make for name, (make, _) in makers.items()}, work, args.runs)
    result = {
        "workload": dataclasses.asdict(work),
        "task": task,
        "documents": abouts[STAGES[0]]["elements"],
        "stages": {stage: steps[stage] for stage in passes},
        "passes": {name: steps[name] for name in makers},
        "about": {name: abouts[name] for name in makers},
        "first_batch": _first_batches({name: make for name, (_, make) in makers.items()}, work, args.runs),
    }
    result |= _ratios(result["passes"])
    print(text(result, work))
    return result


def load_job(work: Workload):
    """The job of a workload; the demo's task where it names none."""
    from t5x_lite import config

    bindings = (
        "MIXTURE_OR_TASK_NAME=demo_span_corruption",
        "VOCABULARY=demo",
        *work.bindings,
        f"BATCH_SIZE={work.batch}",
        f"TASK_FEATURE_LENGTHS={work.lengths}",
    )
    return config.build(config.load(work.gin_files, bindings, optional=("MODEL_DIR", "TRAIN_STEPS")))


def opened(work: Workload):
    """(job, seqio task, what explains its errors).

    Raises:
      UserError: the data is not there, or it is a mixture.
    """
    from t5x_lite.task import open_task

    job = load_job(work)
    task, explain = open_task(job)
    import seqio

    if not isinstance(task, seqio.Task):
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={task.name} is a mixture",
            "one task is measured",
            f"choose one of {', '.join(t.name for t in seqio.get_subtasks(task))}",
        )
    return job, task, explain


def pass_up_to(stage: str, work: Workload) -> tuple[dict, Step]:
    """Passes that leave out what comes after a stage."""
    job, task, explain = opened(work)
    import tensorflow as tf

    from t5x_lite.data import blocks

    dataset = task.source.get_dataset(split="train", shuffle=False, seed=job.seed)
    if stage != STAGES[0]:
        dataset = task.preprocess_precache(dataset, seed=job.seed)
    if stage == STAGES[2]:
        dataset = task.preprocess_postcache(dataset, sequence_length=work.lengths, seed=job.seed)
    dataset = dataset.with_options(blocks.options())

    def step() -> dict:
        # Past all elements, so that none of them has to come out of tf.data, where each would take long.
        for _ in dataset.skip(_ALL):
            pass
        return {}

    try:
        return {"elements": int(dataset.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))}, step
    except tf.errors.OpError as error:
        raise (explain(error) or error) from error


def our_pass(work: Workload) -> tuple[dict, Step]:
    """Passes over the batches that the trainer would get, in order."""
    job, task, explain = opened(work)
    from t5x_lite.data import packing
    from t5x_lite.data.blocks import DatasetBlocks
    from t5x_lite.data.streams import Stream

    dataset = task.get_dataset(work.lengths, "train", shuffle=False, seed=job.seed, trim_output_features=False)

    def step() -> dict:
        start = time.perf_counter()
        stream = Stream(DatasetBlocks(dataset, work.lengths, explain), work.lengths, pack=True)
        batches = iter(lambda: stream.take(work.batch), [])
        found = counted(packing.encoder_decoder(packing.fill(rows, work.lengths), True) for rows in batches)
        # Up to here: tf.data may sleep for seconds before it lets go of an iterator.
        found["wall_s"] = time.perf_counter() - start
        stream.close()
        return found

    return {}, step


def counted(batches: Iterable[Mapping]) -> dict[str, int]:
    """Rows, examples and tokens that are no padding, inputs and targets together, in batches of packed rows."""
    found = {"rows": 0, "examples": 0, "tokens": 0}
    for batch in batches:
        inputs, targets = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
        found["rows"] += len(inputs)
        found["examples"] += int(targets.max(axis=1).sum())
        found["tokens"] += int((inputs > 0).sum() + (targets > 0).sum())
    return found


def our_first_batch(work: Workload) -> tuple[dict, Step]:
    """Seconds from where everything is imported to the first batch of training."""
    job = load_job(work)
    from t5x_lite.tasks import quiet

    quiet.load_tensorflow()
    import sentencepiece.sentencepiece_model_pb2  # noqa: F401

    from t5x_lite.data import examples, packing
    from t5x_lite.tasks import pretraining  # noqa: F401

    start = time.perf_counter(), time.process_time()
    _, task, explain = opened(work)
    shards = list(range(job.data_shards))
    streams = examples.train_streams(task, shards, len(shards), work.lengths, True, job.seed, False, explain)
    each = -(-work.batch // len(shards))
    rows = [row for stream in streams.values() for row in stream.take(each)]
    packing.encoder_decoder(packing.fill(rows, work.lengths), True)
    taken = {"wall_s": time.perf_counter() - start[0], "cpu_s": time.process_time() - start[1]}
    for stream in streams.values():
        stream.close()
    return taken | {"shards": len(shards)}, dict


def _in_turns(makers: Mapping, work: Workload, runs: int) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """What is known of the contestants, and what each of their passes took."""
    contestants: dict[str, Contestant] = {}
    try:
        for name, make in makers.items():
            contestants[name] = Contestant(name, make, work)
        for contestant in contestants.values():
            contestant.step()
        steps: dict[str, list[dict]] = {name: [] for name in contestants}
        for _ in range(runs):
            for name, contestant in contestants.items():
                steps[name].append(contestant.step())
        return {n: {**c.about, "peak_rss_bytes": c.close()} for n, c in contestants.items()}, steps
    finally:
        for contestant in contestants.values():
            contestant.kill()


def _first_batches(makers: Mapping, work: Workload, runs: int) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {name: [] for name in makers}
    for _ in range(runs):
        for name, make in makers.items():
            contestant = Contestant(name, make, work)
            found[name].append(contestant.about)
            contestant.close()
    return found


def _ratios(passes: Mapping[str, Sequence[Mapping]]) -> dict:
    """Our tokens a second over the peer's for each pair of neighbouring passes."""
    if PEER not in passes:
        return {}
    return {
        f"{key}_ratio": [
            (ours["tokens"] / ours[key]) / (theirs["tokens"] / theirs[key])
            for ours, theirs in zip(passes[OURS], passes[PEER])
        ]
        for key in ("wall_s", "cpu_s")
    }


def stage_seconds(result: Mapping) -> dict[str, list[float]]:
    """CPU seconds of each stage in each run: what it adds to the stages before it."""
    up_to = [[step["cpu_s"] for step in result["stages"][stage]] for stage in STAGES[:-1]]
    up_to.append([step["cpu_s"] for step in result["passes"][OURS]])
    nothing = [0.0] * len(up_to[0])
    return {
        stage: [after - before for before, after in zip(*pair)]
        for stage, pair in zip(STAGES, itertools.pairwise([nothing, *up_to]))
    }


def text(result: Mapping, work: Workload) -> str:
    """The figures as plain tables: medians, with the range in brackets."""
    from t5x_lite.verbs.bench import table

    passes, documents = result["passes"], result["documents"]
    rows = [("", "s", "documents/s", "examples/s", "tokens/s", "peak RSS MiB")]
    for name, steps in passes.items():
        for kind, key in (("wall", "wall_s"), ("CPU", "cpu_s")):
            seconds = [step[key] for step in steps]
            rates = [n / statistics.median(seconds) for n in (documents, steps[0]["examples"], steps[0]["tokens"])]
            peak = f"{result['about'][name]['peak_rss_bytes'] / 2**20:,.0f}" if kind == "wall" else ""
            rows.append((f"{name}, {kind}", spread(seconds), *(f"{rate:,.0f}" for rate in rates), peak))
    if "wall_s_ratio" in result:
        for kind, key in (("wall", "wall_s_ratio"), ("CPU", "cpu_s_ratio")):
            rows.append((f"{OURS} / {PEER}, {kind}", "", "", "", spread(result[key]), ""))
    ours = passes[OURS][0]
    stages = stage_seconds(result)
    whole = sum(statistics.median(seconds) for seconds in stages.values())
    shares = [("of " + OURS, "CPU s", "share")]
    for stage, seconds in stages.items():
        shares.append((stage, spread(seconds), f"{statistics.median(seconds) / whole:.0%}"))
    shards = result["first_batch"][OURS][0]["shards"]
    first = [("first batch, after imports", "wall s", "CPU s")]
    for name, runs in result["first_batch"].items():
        label = f"{name}, {shards} shards" if name == OURS else name
        first.append((label, *(spread([run[key] for run in runs]) for key in ("wall_s", "cpu_s"))))
    return "\n".join([
        f"{result['task']}: {documents:,} documents, {ours['examples']:,} examples, {ours['tokens']:,} tokens in "
        f"{ours['rows']:,} rows of {work.inputs} + {work.targets}, batches of {work.batch}; "
        f"median (range) of {len(passes[OURS])} passes in turns",
        table(rows),
        "",
        table(shares),
        "",
        table(first),
    ])  # fmt: skip
