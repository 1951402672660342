"""t5x_lite bench decode: tokens a second from inputs to generated ids, beside `generate` of Hugging Face transformers.

Both read the same freshly drawn weights from one directory of safetensors and decode the same inputs to the full
length, since neither has an end token. Each runs in a process of its own, in turns, as in bench_train.py.
"""

import dataclasses
import functools
import importlib.util
import os
import statistics
import tempfile
from collections.abc import Callable

from t5x_lite.verbs.bench_train import Contestant, Step, Workload, load_job, random_tokens, spread

OURS, PEER = "t5x_lite", "Hugging Face generate"

# Rows of a batch, unless --batch_size is given.
BATCHES = (8, 64)


def measure(args) -> dict:
    """Measures greedy decoding and a beam at each batch size, prints the tables and returns all figures.

    Raises:
      UserError: the job cannot be built.
      RunError: a contestant failed.
    """
    sizes = (args.batch_size,) if args.batch_size else BATCHES
    works = [
        Workload(
            ("runs/pretrain.gin", *(args.gin_file or ["models/t5_1_1_small.gin"])),
            tuple(args.gin),
            size,
            args.inputs,
            args.targets,
            args.dtype,
        )
        for size in sizes
    ]
    makers: dict[str, Callable] = {OURS: ours}
    load_job(works[0])  # what is wrong with it is said before anything runs
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        print(f"{PEER}: not measured, {' and '.join(absent)} not installed")
    else:
        from t5x_lite.verbs import bench_huggingface

        makers[PEER] = bench_huggingface.generation
    # Two processes may share an accelerator: neither takes its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cases = []
    with tempfile.TemporaryDirectory() as directory:
        # In a process of its own too: this one loads no accelerator.
        Contestant("drawing weights", weights, (works[0], directory)).close()
        for work in works:
            for width in (1, args.beam_size):
                cases.append(_case(makers, work, width, directory, args.runs))
                print(text(cases[-1]), flush=True)
    return {"cases": cases}


def _case(makers: dict[str, Callable], work: Workload, width: int, directory: str, runs: int) -> dict:
    """The figures of one batch size and one width of beam."""
    contestants: dict[str, Contestant] = {}
    try:
        for name, make in makers.items():
            contestants[name] = Contestant(name, make, (work, width, directory))
        if PEER in contestants and contestants[PEER].about["device"] == "cpu" != contestants[OURS].about["platform"]:
            print(f"{PEER}: not measured, torch sees no accelerator and {OURS} has one")
            contestants.pop(PEER).close()
        ids = {name: contestant.step()["ids"] for name, contestant in contestants.items()}
        samples: dict[str, list[dict]] = {name: [] for name in contestants}
        for _ in range(runs):
            for name, contestant in contestants.items():
                samples[name].append({k: v for k, v in contestant.step().items() if k != "ids"})
        found = {n: {**c.about, "runs": samples[n], "peak_rss_bytes": c.close()} for n, c in contestants.items()}
    finally:
        for contestant in contestants.values():
            contestant.kill()
    case = {"workload": dataclasses.asdict(work), "beam_size": width, "contestants": found}
    if PEER in found:
        case["equal_tokens"] = equal_share(ids[OURS], ids[PEER])
        pairs = list(zip(samples[OURS], samples[PEER]))
        case |= {f"{key}_ratio": [theirs[key] / own[key] for own, theirs in pairs] for key in ("wall_s", "cpu_s")}
    return case


def equal_share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens in which two batches of equally long sequences agree."""
    pairs = [pair for rows in zip(ours, theirs, strict=True) for pair in zip(*rows, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def weights(argument) -> tuple[dict, Step]:
    """Writes freshly drawn weights for transformers into a directory; the step does nothing."""
    work, directory = argument
    import jax
    from flax.traverse_util import flatten_dict

    from t5x_lite.interop import checkpoint, huggingface, lazy
    from t5x_lite.model import network
    from t5x_lite.parallel import partition

    job = load_job(work)
    with jax.set_mesh(partition.single_device()):
        draw = jax.jit(functools.partial(network.init, job.model, partition.Rules()))
        params = jax.device_get(draw(jax.random.key(job.seed)))
    arrays = {path: lazy.of_array(array) for path, array in flatten_dict(params).items()}
    huggingface.write(directory, checkpoint.Model(job.model, arrays))
    return {}, dict


def ours(argument) -> tuple[dict, Step]:
    """What `infer` and `eval` run, compiled."""
    work, width, directory = argument
    import time

    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict, unflatten_dict

    from t5x_lite import program as programs
    from t5x_lite.interop import huggingface
    from t5x_lite.model import decoding, network
    from t5x_lite.parallel import start

    job = load_job(work)
    start.keep_memory()
    devices = jax.devices()
    strategy = decoding.Strategy("beam", beam_size=width) if width > 1 else decoding.Strategy()
    mesh = job.partition.build(devices)
    with jax.set_mesh(mesh):
        program = programs.lay_out(job, mesh)
        shapes = {path: leaf.shape for path, leaf in flatten_dict(program.params).items()}
        stored = huggingface.read(directory, job.model, shapes)
        arrays = unflatten_dict({path: array.whole() for path, array in stored.params.items()})
        params = (jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), arrays, program.params),)
        tokens = jax.device_put(random_tokens(work, job.model.vocab_size)[0], program.batch_sharding)
        rows = np.arange(work.batch, dtype=np.int32)
        begun = time.perf_counter()
        decode = programs.generate_step([program], strategy, work.targets, eos=-1)
        decode = decode.lower(params, tokens, rows).compile()
        compile_s = time.perf_counter() - begun

    def step() -> dict:
        ids, _, _ = jax.device_get(decode(params, tokens, rows))
        return {"ids": ids[:, 0].tolist()}

    about = {
        "parameters": network.count(program.params),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "compile_s": compile_s,
    }
    return about, step


def text(case: dict) -> str:
    """The figures of one case as a plain table: medians, with the range in brackets."""
    from t5x_lite.verbs.bench import table

    work, contestants = case["workload"], case["contestants"]
    new = work["batch"] * work["targets"]
    rows = [("", "tokens/s", "wall s", "CPU s", "peak RSS MiB")]
    for name, c in contestants.items():
        wall = [run["wall_s"] for run in c["runs"]]
        rows.append((
            name,
            f"{new / statistics.median(wall):,.0f}",
            spread(wall),
            spread([run["cpu_s"] for run in c["runs"]]),
            f"{c['peak_rss_bytes'] / 2**20:,.0f}",
        ))  # fmt: skip
    if "wall_s_ratio" in case:
        rows.append((f"{PEER} / {OURS}", "", spread(case["wall_s_ratio"]), spread(case["cpu_s_ratio"]), ""))
    own = contestants[OURS]
    how = "greedy" if case["beam_size"] == 1 else f"beam {case['beam_size']}"
    lines = [
        f"{how}, batch {work['batch']}, {work['inputs']} inputs to {work['targets']} new tokens, {work['dtype']}, "
        f"{own['parameters']:,} parameters on {own['devices']} x {own['device']}; median (range) of "
        f"{len(own['runs'])} runs in turns; compiled in {own['compile_s']:.1f} s",
        table(rows),
    ]
    if "equal_tokens" in case:
        lines.append(f"{100 * case['equal_tokens']:.2f} % of the tokens are equal")
    return "\n".join(lines)
