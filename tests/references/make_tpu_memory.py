"""Writes tpu_memory.json: the peak memory of real train steps by the TPU compiler, a few minutes for each.

    python tests/references/make_tpu_memory.py [NAME ...]

Without names all jobs are compiled, with names those alone, and the file keeps the others. Needs libtpu, no TPU.
"""

import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax

from t5x_lite import config
from t5x_lite.job import UNUSED_WHEN_DRY
from t5x_lite.parallel import compile_only
from t5x_lite.program import abstract_batch, lay_out, train_step
from t5x_lite.tpu import hardware

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("tpu_memory.json")


def flags(model: str, partition: str, topology: str, *bindings: str) -> list[str]:
    files = [f"models/{model}.gin", "runs/pretrain.gin", f"partition/{partition}.gin"]
    return [
        *(f"--gin_file={file}" for file in files),
        *(f"--gin.{binding}" for binding in ("TRAIN_STEPS=1000", "DATA_SHARDS=128", *bindings)),
        f"--topology={topology}",
    ]


def mesh(**sizes: int) -> str:
    return f"partition.Partition.mesh={sizes}"


def remat(policy: str) -> str:
    return f"architecture.Architecture.remat={policy}"


# Beside the shipped examples: other sizes, slices, layouts and policies.
JOBS = {
    "base_none_v5e": flags("t5_1_1_base", "data", "v5e:4x4", "BATCH_SIZE=256", remat("none")),
    "base_full_v5e": [
        "--gin_file=examples/c4_t5_1_1_base_v5e_4x4.gin",
        f"--gin.{remat('full')}",
        "--gin.MICROBATCHES=1",
        "--topology=v5e:4x4",
    ],
    "base_dots_v5e_tensor": flags(
        "t5_1_1_base", "tensor", "v5e:2x2", "BATCH_SIZE=64", mesh(data=-1, model=2), remat("dots")
    ),
    "small_dots_v6e_data": flags("t5_1_1_small", "data", "v6e:2x4", "BATCH_SIZE=512", remat("dots")),
    "large_full_v5p_2d_split": flags(
        "t5_1_1_large", "2d", "v5p:4x4x4", "BATCH_SIZE=512", mesh(fsdp=8, data=-1, model=2), remat("full")
    ),
    "lm_full_v5e_fsdp": flags("t5_1_0_base_lm", "fsdp", "v5e:2x4", "BATCH_SIZE=128", remat("full")),
    "lm_none_v5e_hsdp": flags("t5_1_0_base_lm", "hsdp", "v5e:4x4", "BATCH_SIZE=128", remat("none")),
    "xl_full_v4_hsdp": flags("t5_1_1_xl", "hsdp", "v4:4x4x4", "BATCH_SIZE=1024", mesh(data=-1, fsdp=16), remat("full")),
    "large_full_v5e_microbatches": flags(
        "t5_1_1_large", "hsdp", "v5e:4x4", "BATCH_SIZE=512", "MICROBATCHES=4", remat("full")
    ),
    "base_full_v5e_two_slices": [
        *flags("t5_1_1_base", "multi_slice", "v5e:2x4", "BATCH_SIZE=512", remat("full")), "--num_slices=2",
    ],
    "mt5_base_full_v5e": flags("mt5_base", "fsdp", "v5e:4x4", "BATCH_SIZE=512", remat("full")),
    "large_adamw_tpu7x": [
        *flags("t5_1_1_large", "fsdp", "tpu7x:2x2x1", "BATCH_SIZE=256", remat("dots")),
        "--gin_file=optim/adamw_rms.gin",
    ],
}  # fmt: skip


def examples() -> dict[str, list[str]]:
    """The commands in the headers of the shipped examples."""
    found = {}
    for path in sorted((ROOT / "gin/examples").glob("c4_*.gin")):
        found[path.stem] = re.search(r"t5x_lite train --dry_run (.*)", path.read_text())[1].split()
    return found


def measured(words: list[str]) -> dict:
    """What the compiler says of one job."""
    of = {name: [w.partition("=")[2] for w in words if w.startswith(f"--{name}=")] for name in
          ("gin_file", "topology", "num_slices")}  # fmt: skip
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    job = config.build(config.load(of["gin_file"], bindings, optional=UNUSED_WHEN_DRY))
    wanted = hardware.parse(of["topology"][0])
    devices = compile_only.devices(wanted.generation, wanted.shape, int((of["num_slices"] or [1])[0]))
    built = job.partition.build(devices)
    began = time.monotonic()
    with jax.set_mesh(built):
        laid = lay_out(job, built)
        compiled = train_step(job, laid).lower(laid.state, abstract_batch(job, laid)).compile()
    memory = compiled.memory_analysis()
    return {
        "flags": words,
        "mesh": dict(built.shape),
        "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    jobs = examples() | JOBS
    for name in sys.argv[1:] or jobs:
        try:
            found = measured(jobs[name])
        except jax.errors.JaxRuntimeError as error:  # the compiler refuses what does not fit
            used = re.search(r"Used ([\d.]+)([MG]) of ([\d.]+)([MG]) hbm", str(error))
            if not used:
                raise
            unit = {"M": 2**20, "G": 2**30}
            found = {
                "flags": jobs[name],
                "peak_bytes": round(float(used[1]) * unit[used[2]]),
                "refused_above_bytes": round(float(used[3]) * unit[used[4]]),
            }
        file = json.loads(FILE.read_text()) if FILE.exists() else {}
        versions = {package: version(package) for package in ("jax", "libtpu")}
        file[name] = found | versions
        FILE.write_text(json.dumps(dict(sorted(file.items())), indent=1) + "\n")
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
