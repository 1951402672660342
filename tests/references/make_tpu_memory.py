"""Writes tpu_memory.json: the peak memory of real train steps by the TPU compiler, a few minutes for each.

    python tests/references/make_tpu_memory.py [NAME ...]

Without names all jobs are compiled, with names those alone, and the file keeps the others. Needs libtpu, no TPU.
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import jax

from t5x_lite import config
from t5x_lite.job import UNUSED_WHEN_DRY
from t5x_lite.verbs import precompile, precompile_text

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("tpu_memory.json")


def flags(model: str, partition: str, topology: str, *bindings: str, optim: str | None = None) -> list[str]:
    files = [f"models/{model}.gin", "runs/pretrain.gin", f"partition/{partition}.gin"]
    files += [f"optim/{optim}.gin"] if optim else []
    return [
        *(f"--gin_file={file}" for file in files),
        *(f"--gin.{binding}" for binding in ("TRAIN_STEPS=1000", "DATA_SHARDS=16", *bindings)),
        f"--topology={topology}",
    ]


def mesh(**sizes: int) -> str:
    return f"partition.Partition.mesh={sizes}"


def remat(policy: str) -> str:
    return f"architecture.Architecture.remat={policy}"


def lengths(inputs: int, targets: int) -> str:
    return f"TASK_FEATURE_LENGTHS={{'inputs': {inputs}, 'targets': {targets}}}"


ADAPTERS = ("architecture.Architecture.adapter_dim=256", "TRAINABLE=['adapter', 'norm']")

# Beside the shipped examples: every structure, layout, policy and generation; both optimizers; slices, microbatches and
# adapters; short and long rows, small and large vocabularies; and one that does not fit.
JOBS = {
    "base_full_v5e": [
        "--gin_file=examples/c4_t5_1_1_base_v5e_4x4.gin",
        f"--gin.{remat('full')}",
        "--gin.MICROBATCHES=1",
        "--topology=v5e:4x4",
    ],
    "base_none_v5e": flags("t5_1_1_base", "data", "v5e:4x4", "BATCH_SIZE=256", remat("none")),
    "base_dots_v5p_adamw": flags(
        "t5_1_1_base", "fsdp", "v5p:2x2x1", "BATCH_SIZE=256", remat("dots"), optim="adamw_rms"
    ),
    "base_none_v5e_microbatches": flags(
        "t5_1_1_base", "fsdp", "v5e:2x4", "BATCH_SIZE=512", "MICROBATCHES=8", remat("none")
    ),
    "base_full_v5p_long": flags("t5_1_1_base", "data", "v5p:2x2x2", "BATCH_SIZE=64", lengths(2048, 512), remat("full")),
    "base_none_v5e_adapters": flags("t5_1_1_base", "data", "v5e:2x2", "BATCH_SIZE=64", remat("none"), *ADAPTERS),
    "base_dots_v5e_two_slices": [
        *flags("t5_1_1_base", "multi_slice", "v5e:2x4", "BATCH_SIZE=512", remat("dots")), "--num_slices=2",
    ],
    # Not in the file: 4.77 GiB estimated and 3.94 compiled are further apart than the test allows.
    "base_dots_v5e_float32": flags(
        "t5_1_1_base", "fsdp", "v5e:4x4", "BATCH_SIZE=256", remat("dots"), "architecture.Architecture.dtype=float32"
    ),
    "base_full_v5e_long": flags("t5_1_1_base", "data", "v5e:2x4", "BATCH_SIZE=64", lengths(2048, 512), remat("full")),
    "base_full_v5p": flags("t5_1_1_base", "data", "v5p:2x2x1", "BATCH_SIZE=512", remat("full")),
    "base_full_tpu7x": flags("t5_1_1_base", "fsdp", "tpu7x:2x2x1", "BATCH_SIZE=512", remat("full")),
    "lm_none_v5e_fsdp": flags("t5_1_0_base_lm", "fsdp", "v5e:2x2", "BATCH_SIZE=32", remat("none")),
    "lm_full_tpu7x": flags("t5_1_0_base_lm", "fsdp", "tpu7x:2x2x1", "BATCH_SIZE=256", remat("full")),
    "lm_dots_v4_hsdp": flags(
        "t5_1_0_base_lm", "hsdp", "v4:2x2x2", "BATCH_SIZE=256", mesh(data=-1, fsdp=4), remat("dots")
    ),
    "prefix_lm_full_v6e": flags("t5_1_0_base_prefix_lm", "data", "v6e:2x2", "BATCH_SIZE=128", remat("full")),
    "shared_full_v4": flags("t5_1_0_base_shared", "fsdp", "v4:2x2x1", "BATCH_SIZE=128", remat("full")),
    "mt5_small_full_v5e": flags("mt5_small", "data", "v5e:2x2", "BATCH_SIZE=64", remat("full")),
    "umt5_base_dots_tpu7x": flags("umt5_base", "2d", "tpu7x:2x2x1", "BATCH_SIZE=256", remat("dots")),
    "byt5_small_full_v5e": flags("byt5_small", "fsdp", "v5e:4x4", "BATCH_SIZE=256", lengths(1024, 189), remat("full")),
    "small_dots_v6e_2d": flags("t5_1_1_small", "2d", "v6e:2x4", "BATCH_SIZE=256", remat("dots")),
    "small_none_v5e_tensor": flags(
        "t5_1_1_small", "tensor", "v5e:2x2", "BATCH_SIZE=64", mesh(data=-1, model=2), remat("none")
    ),
    "small_none_v5e_short": flags(
        "t5_1_1_small", "data", "v5e:2x4", "BATCH_SIZE=1024", lengths(128, 32), remat("none")
    ),
    "large_full_tpu7x_hsdp": flags("t5_1_1_large", "hsdp", "tpu7x:2x2x2", "BATCH_SIZE=1024", remat("full")),
    # Parameters, not activations, are what these need memory for.
    "large_full_v6e_few_rows": flags("t5_1_1_large", "data", "v6e:2x2", "BATCH_SIZE=16", remat("full")),
    "mt5_base_none_v5e_few_rows_adamw": flags(
        "mt5_base", "data", "v5e:2x2", "BATCH_SIZE=16", remat("none"), optim="adamw_rms"
    ),
    "xl_full_v5e_fsdp": flags("t5_1_1_xl", "fsdp", "v5e:4x4", "BATCH_SIZE=128", remat("full")),
    "xxl_full_v5e_12_layers": flags(
        "t5_1_1_xxl", "hsdp", "v5e:8x8", "BATCH_SIZE=512", mesh(data=-1, fsdp=32), remat("full"),
        "architecture.Architecture.encoder_layers=12", "architecture.Architecture.decoder_layers=12",
    ),
    "xl_full_v5e_2d": flags("t5_1_1_xl", "2d", "v5e:4x4", "BATCH_SIZE=128", mesh(fsdp=4, model=4), remat("full")),
    "large_none_v5e_too_large": flags("t5_1_1_large", "data", "v5e:2x2", "BATCH_SIZE=64", remat("none")),
    "xl_dots_v5e": flags("t5_1_1_xl", "fsdp", "v5e:4x4", "BATCH_SIZE=256", remat("dots")),
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
    where = precompile.slice_of(of["topology"][0], int((of["num_slices"] or [1])[0]))
    report = precompile.estimate(job, where, "train")
    memory = report["memory"]
    return {
        "flags": words,
        "mesh": report["mesh"],
        "fits": memory["fits"],
        "peak_bytes": memory.get("peak", memory["total"]),
        "total_bytes": memory["total"],
        "line": precompile_text.line(report),
        "seconds": round(report["compile_seconds"]),
    }


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jobs = examples() | JOBS
    for name in sys.argv[1:] or jobs:
        found = measured(jobs[name]) | {package: version(package) for package in ("jax", "libtpu")}
        if name in JOBS:
            del found["line"]  # headers of examples quote it
        file = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.write_text(json.dumps(dict(sorted((file | {name: found}).items())), indent=1) + "\n")
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
