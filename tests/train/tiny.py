"""A small job without data, its batches, and its program on any number of devices, for several tests."""

import dataclasses
import functools
import tempfile

import jax
import numpy as np

from t5x_lite import config, program
from t5x_lite.job import Job
from t5x_lite.model import network
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel import collectives, hlo, hosts
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.parallel.partition import Partition, Rules
from t5x_lite.train import optimizer, schedule

ARCHITECTURE = Architecture(
    vocab_size=96, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48, encoder_layers=2, decoder_layers=2,
    relative_buckets=8, relative_max_distance=20, dtype="float32",
)  # fmt: skip
ONE = Partition({}, {})
# The shipped layouts, with sizes that few devices and tiny shapes divide over.
MESHES = {
    "data": {"data": -1},
    "fsdp": {"fsdp": -1},
    "tensor": {"data": -1, "model": 2},
    "2d": {"fsdp": -1, "model": 2},
    "hsdp": {"data": -1, "fsdp": 2},
    "multi_slice": {"slice": 2, "fsdp": -1},
}
LENGTHS = {"inputs": 12, "targets": 10}


@functools.cache
def shipped(name: str) -> Partition:
    """The layout of gin/partition/NAME.gin."""
    with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
        # A macro has to be read by something.
        file.write("from __gin__ import dynamic_registration\nfrom t5x_lite import job\n")
        file.write("job.Job.partition = %PARTITION\n")
        file.flush()
        files = [f"partition/{name}.gin", file.name]
        return config.load(files, configured="t5x_lite.parallel.partition.Partition")()


def job(partition=ONE, **changed) -> Job:
    fields = {
        "model": ARCHITECTURE,
        "partition": partition,
        # Factored from 16 on, so that the tiny kernels are.
        "optimizer": optimizer.adafactor(min_dim_size_to_factor=16),
        "learning_rate": schedule.rsqrt(base=0.05, warmup_steps=1),
        "mixture_or_task_name": None,
        "feature_lengths": LENGTHS,
        "train_steps": 10,
        "model_dir": None,
        "batch_size": 16,
    }
    return Job(**fields | changed)


def rows(seed: int, count: int = 16) -> dict[str, np.ndarray]:
    """A packed batch: rows of two examples and padding, with different numbers of targets."""
    rng = np.random.default_rng(seed)
    batch = {}
    for side, length in (("encoder", LENGTHS["inputs"]), ("decoder", LENGTHS["targets"])):
        first, both = rng.integers(1, length // 2, count), rng.integers(length // 2 + 1, length + 1, count)
        place = np.arange(length)
        segments = np.where(place < first[:, None], 1, np.where(place < both[:, None], 2, 0)).astype(np.int32)
        tokens = np.where(segments > 0, rng.integers(2, 96, (count, length)), 0).astype(np.int32)
        batch[f"{side}_segment_ids"] = segments
        batch["encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"] = tokens
    targets, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = np.where(segments[:, 1:] == segments[:, :-1], targets[:, :-1], 0)
    batch["decoder_input_tokens"] = shifted
    batch["decoder_loss_weights"] = (segments > 0).astype(np.float32)
    return batch


@functools.cache
def params(model: Architecture = ARCHITECTURE) -> dict:
    """The parameters that every run of a model starts from, as numpy."""
    with jax.set_mesh(ONE.build(jax.local_devices()[:1])):
        return jax.device_get(network.init(model, Rules(), jax.random.key(1)))


def on_mesh(name: str) -> Partition:
    """The shipped layout on the mesh above."""
    return dataclasses.replace(shipped(name), mesh=MESHES[name])


def collectives_of(compiled, sizes: dict[str, int]) -> list[collectives.Collective]:
    """What the devices of a compiled program say to each other, on a mesh of these sizes."""
    sides = tuple(sizes.values())
    places = np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=1)
    torus = collectives.Torus(sizes, places, sides, (False,) * len(sides), CHIPS["v5p"])
    return collectives.found(hlo.parse(compiled.as_text()), torus)


def runner(job: Job, devices: int = 1):
    """A function, compiled once: batches -> the state after a step for each, and the metrics of each, as numpy.

    Of several processes, all call it alike.
    """
    mesh = job.partition.build(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        laid = program.lay_out(job, jax.sharding.get_mesh())
        # What is computed again, looped over or dropped leaves the parameters the same.
        start = params(dataclasses.replace(job.model, remat="none", scan_layers=True, dropout_rate=0.0))
        begin, step = program.init_state(laid), program.train_step(job, laid)

    def run(batches):
        with jax.set_mesh(mesh):
            state = begin(jax.tree.map(lambda x, s: hosts.put(x, s.sharding), start, laid.params))
            found = []
            for batch in batches:
                placed = {name: hosts.put(x, laid.batch_sharding) for name, x in batch.items()}
                state, metrics = step(state, placed)
                found.append(jax.device_get(metrics))
            return hosts.get(state), found

    return run
