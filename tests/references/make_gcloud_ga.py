"""Writes gcloud_ga.json: the flags of the GA commands that t5x_lite tpu may use, from the Google Cloud CLI itself.

gcloud meta cli-trees update --commands=gcloud --directory=DIRECTORY --force
python tests/references/make_gcloud_ga.py DIRECTORY/gcloud.json
"""

import json
import sys
from pathlib import Path

COMMANDS = [
    *(f"compute tpus queued-resources {verb}" for verb in ("create", "delete", "describe", "list", "ssh", "scp")),
    *(f"compute tpus tpu-vm {verb}" for verb in ("create", "delete", "describe", "list", "ssh", "scp")),
    *(f"storage {verb}" for verb in ("cat", "cp", "ls", "rm", "rsync", "buckets create", "buckets describe")),
    *(f"storage {verb}" for verb in ("objects list", "objects describe", "buckets add-iam-policy-binding")),
    "services enable",
    "projects add-iam-policy-binding",
    "iam service-accounts create",
    "iam service-accounts add-iam-policy-binding",
]


def main(path: str) -> None:
    tree = json.loads(Path(path).read_text())
    flags = tree["SERIALIZED_FLAG_LIST"]
    found = {}
    for name in COMMANDS:
        node = tree
        for word in name.split():
            node = node["commands"][word]
        assert node["release"] == "GA", name
        own = [flags[i] if isinstance(i, int) else i for i in node["flags"].values()]
        everywhere = [flags[i] if isinstance(i, int) else i for i in tree["flags"].values()]
        found[name] = {
            # "bool": takes no value; "": takes any.
            "flags": {f["name"]: "bool" if f["type"] == "bool" else f["choices"] or "" for f in own + everywhere},
            "positionals": [p["nargs"] for p in node["positionals"]],
            "groups": [g for g in groups(node["constraints"]["arguments"], flags) if "of" in g or g["required"]],
        }
    kept = {"version": tree["CLI_VERSION"], "commands": found}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    (Path(__file__).parent / "gcloud_ga.json").write_text(text + "\n")


def groups(arguments, flags):
    """Required flags, and groups of flags that are required or exclude each other."""
    kept = []
    for argument in arguments:
        argument = flags[argument] if isinstance(argument, int) and argument >= 0 else argument
        if isinstance(argument, int):
            continue
        if argument["is_group"]:
            inner = groups(argument["arguments"], flags)
            if inner:
                kept.append({"mutex": argument["is_mutex"], "required": argument["is_required"], "of": inner})
        elif not argument["is_positional"]:
            kept.append({"flag": argument["name"], "required": argument["is_required"]})
    return kept


if __name__ == "__main__":
    main(sys.argv[1])
