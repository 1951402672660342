#!/usr/bin/env -S python3 -IS
"""A strict gcloud with a small Cloud TPU and a bucket behind it, as a program on PATH or within a test's own process.

It takes the flags that references/gcloud_ga.json has of each GA command and refuses all others. What it holds lives in
the folder FAKE_GCLOUD, or in memory. A test writes what is to happen:

- futures: one list of states for each creation in turn. Each describe of the resource takes it one state further. A
  state may carry more: "FAILED=message", "ACTIVE/PREEMPTED" (of its TPU VMs), "ACTIVE/" (it has none), "ACTIVE*" (its
  workers report), "GONE" (somebody deleted it), "ACTIVE!done" (its worker 0 reports and writes exit.json).
- faults: of the commands that match, so many times: exit status, stderr, stdout; "after": the command works, and its
  answer is lost.
"""

import base64
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

REFERENCES = Path(os.path.realpath(__file__)).parents[1] / "references"
GRAMMAR = json.loads((REFERENCES / "gcloud_ga.json").read_text())["commands"]
DEFAULT_FUTURE = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE*"]
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base", "v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e",
}  # fmt: skip
GONE = ("FAILED", "SUSPENDED", "DELETING", "SUSPENDING")


class Failed(Exception):
    """A command that ends with an error: exit status and stderr."""

    def __init__(self, said, status=1):
        super().__init__(said)
        self.status = status


def parse(argv):
    """The command's name, flags and positionals, by the GA grammar."""
    if argv and argv[0] in ("alpha", "beta", "preview"):
        raise Failed(f"ERROR: the {argv[0]} track is not to be used", 2)
    words = list(argv)
    name = next((n for n in sorted(GRAMMAR, key=len, reverse=True) if words[: len(n.split())] == n.split()), None)
    if name is None:
        raise Failed(f"ERROR: (gcloud) Invalid choice: {words[:4]}", 2)
    known, words = GRAMMAR[name], words[len(name.split()) :]
    flags, positionals = {}, []
    while words:
        word = words.pop(0)
        if word == "--":
            if not name.endswith(" ssh"):
                raise Failed("ERROR: unrecognized arguments: --", 2)
            break
        if not word.startswith("--"):
            positionals.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in known["flags"]:
            raise Failed(f"ERROR: (gcloud.{name.replace(' ', '.')}) unrecognized arguments: {flag}", 2)
        if known["flags"][flag] == "bool":
            if equals:
                raise Failed(f"ERROR: argument {flag}: ignored explicit argument {value!r}", 2)
            value = True
        elif not equals:
            if not words:
                raise Failed(f"ERROR: argument {flag}: expected one argument", 2)
            value = words.pop(0)
        choices = known["flags"][flag]
        if isinstance(choices, list) and value not in choices:
            raise Failed(f"ERROR: argument {flag}: Invalid choice: {value!r}", 2)
        flags[flag] = value
    many = any(n in ("*", "+") for n in known["positionals"])
    least = sum(n in ("1", "+") for n in known["positionals"])
    if len(positionals) < least or (not many and len(positionals) > len(known["positionals"])):
        raise Failed(f"ERROR: (gcloud.{name}) takes {known['positionals']} arguments, not {positionals}", 2)
    for group in known["groups"]:
        check(group, flags)
    return name, flags, positionals


def check(group, flags, needed=True):
    """Refuses what a group of flags excludes; whether any of it is given."""
    if "flag" in group:
        given = group["flag"] in flags
        if needed and group["required"] and not given:
            raise Failed(f"ERROR: argument {group['flag']}: Must be specified.", 2)
        return given
    given = [check(inner, flags, False) for inner in group["of"]]
    if group["mutex"] and sum(given) > 1:
        raise Failed(f"ERROR: at most one of {group['of']} can be specified", 2)
    # What stands for a resource's zone may come from the configuration; nothing is configured here.
    if needed and group["required"] and not any(given):
        raise Failed(f"ERROR: exactly one of {group['of']} must be specified", 2)
    if any(given):
        for inner in group["of"]:
            if "flag" in inner and inner["required"] and inner["flag"] not in flags:
                raise Failed(f"ERROR: argument {inner['flag']}: Must be specified.", 2)
    return any(given)


def pairs(text):
    """A dictionary of a flag, with gcloud's own way to change the comma."""
    mark = ","
    if found := re.match(r"\^(.*?)\^", text):
        mark, text = found[1], text[found.end() :]
    items = [part.partition("=") for part in text.split(mark)]
    if not all(equals for _, equals, _ in items):
        raise Failed(f"ERROR: Bad syntax for dict arg: [{text}]", 2)
    return {key: value for key, _, value in items}


def _shown(resource):
    return {key: value for key, value in resource.items() if key not in ("future", "nodes", "deleting")}


class Fake:
    """The world behind the commands."""

    def __init__(self, folder=None, clock=time.time):
        self.folder, self.clock = folder and Path(folder), clock
        self.state = {
            "objects": {}, "resources": {}, "nodes": {}, "futures": [], "faults": [], "calls": [], "generation": 1000,
            "created": 0, "most_live": 0, "deleting_looks": 1, "bucket_missing": False, "beats": True, "ssh_fails": [],
        }  # fmt: skip
        if self.folder and (self.folder / "state.json").exists():
            self.state.update(json.loads((self.folder / "state.json").read_text()))

    def save(self):
        path = self.folder / "state.json"
        path.with_suffix(".new").write_text(json.dumps(self.state))
        path.with_suffix(".new").replace(path)

    # In place of gcloud.call.

    def __call__(self, words, timeout=None):
        assert words[0] == "gcloud", words
        argv = list(words[1:])
        self.state["calls"].append(argv)
        fault = self._fault(" ".join(argv))
        if fault and not fault.get("after"):
            return fault.get("status", 1), fault.get("stdout", ""), fault.get("stderr", "")
        try:
            name, flags, positionals = parse(argv)
            out = getattr(self, "do_" + re.sub(r"\W", "_", name))(flags, positionals)
        except Failed as error:
            return error.status, "", f"{error}\n"
        self._count()
        if fault:
            return fault.get("status", -9), "", fault.get("stderr", "")
        return 0, out or "", ""

    def _fault(self, line):
        for fault in self.state["faults"]:
            if fault["times"] and re.search(fault["match"], line):
                fault["times"] -= 1
                return fault
        return None

    def _count(self):
        live = {}
        for resource in self.state["resources"].values():
            if resource["state"]["state"] not in GONE:
                labels = resource["tpu"]["nodeSpec"][0]["node"]["labels"]
                live[labels.get("t5x-lite-job")] = live.get(labels.get("t5x-lite-job"), 0) + 1
        self.state["most_live"] = max([self.state["most_live"], *live.values()])

    def time(self):
        return datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")

    # Queued resources.

    def do_compute_tpus_queued_resources_create(self, flags, positionals):
        zone, name = flags["--zone"], positionals[0]
        if f"{zone}/{name}" in self.state["resources"]:
            raise Failed(f"ERROR: ALREADY_EXISTS: Resource '{zone}/{name}' already exists")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?|[a-z][-a-z0-9]{0,62}", name):
            raise Failed(f"ERROR: INVALID_ARGUMENT: {name} is no id")
        kind = flags["--accelerator-type"].rpartition("-")[0]
        if RUNTIMES.get(kind) != flags["--runtime-version"]:
            raise Failed(f"ERROR: INVALID_ARGUMENT: {flags['--runtime-version']} does not go with {kind}")
        if "--node-count" in flags and int(flags["--node-count"]) < 2:
            raise Failed("ERROR: Invalid value for [--node-count]: Node count must be greater than 1")
        if "--valid-until-duration" in flags and not re.fullmatch(r"\d+[smhd]", flags["--valid-until-duration"]):
            raise Failed("ERROR: argument --valid-until-duration: Failed to parse duration", 2)
        metadata = pairs(flags["--metadata"]) if "--metadata" in flags else {}
        for key, path in pairs(flags.get("--metadata-from-file", "a=/dev/null")).items():
            metadata[key] = Path(path).read_text()
        count = int(flags.get("--node-count", 1))
        prefix = flags.get("--node-prefix", name)
        names = [flags["--node-id"]] if "--node-id" in flags else [f"{prefix}-{k}" for k in range(count)]
        for node in names:
            if f"{zone}/{node}" in self.state["nodes"]:
                raise Failed(f"ERROR: ALREADY_EXISTS: node {node} already exists")
        labels = pairs(flags["--labels"])
        for text in (*labels, *labels.values()):
            if not re.fullmatch(r"[a-z0-9_-]{1,63}", text):
                raise Failed(f"ERROR: INVALID_ARGUMENT: label {text!r}")
        number = self.state["created"]
        self.state["created"] += 1
        futures = self.state["futures"]
        future = list(futures[number]) if number < len(futures) else list(DEFAULT_FUTURE)
        self.state["resources"][f"{zone}/{name}"] = {
            "name": f"projects/{flags['--project']}/locations/{zone}/queuedResources/{name}",
            "createTime": self.time(), "state": {"state": "CREATING"}, "future": future, "nodes": names,
            "tpu": {"nodeSpec": [{"node": {
                "acceleratorType": flags["--accelerator-type"], "labels": labels, "metadata": metadata,
            }}]},
        }  # fmt: skip

    def _advance(self, key):
        resource = self.state["resources"][key]
        if "deleting" in resource:
            resource["deleting"] -= 1
            if resource["deleting"] < 0:
                del self.state["resources"][key]
                for node in resource["nodes"]:
                    self.state["nodes"].pop(f"{key.partition('/')[0]}/{node}", None)
            return
        future = resource["future"]
        if future:
            self.become(key, future.pop(0) if len(future) > 1 else future[0])

    def become(self, key, text):
        """Takes a resource to a state."""
        resource, zone = self.state["resources"][key], key.partition("/")[0]
        if text == "GONE":
            resource["deleting"] = 0
            self._advance(key)
            return
        state, ended, result = text.partition("!")
        state, beating, _ = state.partition("*")
        state, has_nodes, of_nodes = state.partition("/")
        state, _, message = state.partition("=")
        resource["state"] = {"state": state}
        if message:
            resource["state"]["failedData"] = {"error": {"code": 8, "message": message}}
        if state != "ACTIVE":
            for node in resource["nodes"]:
                self.state["nodes"].pop(f"{zone}/{node}", None)
            return
        labels = resource["tpu"]["nodeSpec"][0]["node"]["labels"]
        for node in resource["nodes"]:
            if has_nodes and not of_nodes:
                self.state["nodes"].pop(f"{zone}/{node}", None)
                continue
            known = self.state["nodes"].get(f"{zone}/{node}", {})
            self.state["nodes"][f"{zone}/{node}"] = {
                "name": f"projects/p/locations/{zone}/nodes/{node}", "state": of_nodes or "READY", "labels": labels,
                "createTime": known.get("createTime") or self.time(),
                "acceleratorType": resource["tpu"]["nodeSpec"][0]["node"]["acceleratorType"],
            }  # fmt: skip
        url = resource["tpu"]["nodeSpec"][0]["node"]["metadata"].get("t5x-lite-job")
        if url and (beating or ended):
            job = json.loads(self.text(f"{url}/job.json"))
            hosts = max(1, int(job["accelerator"].rpartition("-")[2]) // 4) if job["accelerator"][-2:] != "-8" else 1
            for s in range(job["num_slices"]):
                for w in range(hosts):
                    beat = {"launched": job["launched"], "worker": f"{s}-{w}", "state": "running", "restarts": 0}
                    self.put(f"{url}/heartbeat/{s}-{w}", json.dumps(beat).encode())
            if ended and f"{url}/exit.json" not in self.state["objects"]:
                outcome = {"launched": job["launched"], "result": result, "why": "a worker says so"}
                self.put(f"{url}/exit.json", json.dumps(outcome).encode())

    def do_compute_tpus_queued_resources_describe(self, flags, positionals):
        key = f"{flags['--zone']}/{positionals[0]}"
        if key in self.state["resources"]:
            self._advance(key)
        if key not in self.state["resources"]:
            raise Failed(f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource '{key}' was not found")
        return json.dumps(_shown(self.state["resources"][key]))

    def do_compute_tpus_queued_resources_list(self, flags, positionals):
        self._location(flags)
        here = flags["--zone"] + "/"
        return json.dumps([_shown(r) for key, r in self.state["resources"].items() if key.startswith(here)])

    def _location(self, flags):
        if flags.get("--format") != "json":
            raise Failed("only JSON is to be read", 2)

    def do_compute_tpus_queued_resources_delete(self, flags, positionals):
        key = f"{flags['--zone']}/{positionals[0]}"
        if key not in self.state["resources"]:
            raise Failed(f"ERROR: NOT_FOUND: Resource '{key}' was not found")
        if "--quiet" not in flags:
            raise Failed("ERROR: it asks, and nobody answers")
        resource = self.state["resources"][key]
        zone = flags["--zone"]
        if "--force" not in flags and any(f"{zone}/{n}" in self.state["nodes"] for n in resource["nodes"]):
            raise Failed("ERROR: FAILED_PRECONDITION: it has nodes")
        resource["state"] = {"state": "DELETING"}
        resource.setdefault("deleting", self.state["deleting_looks"])

    # TPU VMs.

    def do_compute_tpus_tpu_vm_list(self, flags, positionals):
        self._location(flags)
        return json.dumps([n for k, n in self.state["nodes"].items() if k.startswith(flags["--zone"] + "/")])

    def do_compute_tpus_tpu_vm_describe(self, flags, positionals):
        found = self.state["nodes"].get(f"{flags['--zone']}/{positionals[0]}")
        if found is None:
            raise Failed("ERROR: NOT_FOUND: it was not found")
        return json.dumps(found)

    def do_compute_tpus_tpu_vm_delete(self, flags, positionals):
        if self.state["nodes"].pop(f"{flags['--zone']}/{positionals[0]}", None) is None:
            raise Failed("ERROR: NOT_FOUND: it was not found")

    def do_compute_tpus_tpu_vm_ssh(self, flags, positionals):
        if self.state["ssh_fails"]:
            failed = ", ".join(map(str, self.state["ssh_fails"]))
            raise Failed(f"ERROR: (gcloud.compute.tpus.tpu-vm.ssh) could not connect to workers {failed}", 255)
        return "ok\n"

    # The bucket.

    def put(self, url, content):
        self.state["generation"] += 1
        entry = {"generation": self.state["generation"], "time": self.time()}
        if self.folder:
            name = f"object-{self.state['generation']}"
            (self.folder / name).write_bytes(content)
            entry["file"] = name
        else:
            entry["content"] = base64.b64encode(content).decode()
        self.state["objects"][url] = entry

    def get(self, url):
        entry = self.state["objects"][url]
        return (self.folder / entry["file"]).read_bytes() if "file" in entry else base64.b64decode(entry["content"])

    def text(self, url):
        return self.get(url).decode()

    def _matching(self, pattern):
        if self.state["bucket_missing"]:
            raise Failed("ERROR: (gcloud.storage) gs://bucket not found: 404: The specified bucket does not exist.")
        # A star does not go beyond a folder.
        expression = "".join("[^/]*" if c == "*" else re.escape(c) for c in pattern)
        return sorted(url for url in self.state["objects"] if re.fullmatch(expression, url))

    def do_storage_cp(self, flags, positionals):
        source, target = positionals
        if not target.startswith("gs://"):
            if not self._matching(source):
                raise Failed("ERROR: (gcloud.storage.cp) The following URLs matched no objects or files:\n" + source)
            Path(target).write_bytes(self.get(source))
            return
        self._matching(target)
        condition = flags.get("--if-generation-match")
        current = self.state["objects"].get(target, {"generation": 0})["generation"]
        if condition is not None and int(condition) != current:
            raise Failed("ERROR: HTTPError 412: At least one of the pre-conditions you specified did not hold.")
        self.put(target, Path(source).read_bytes())

    def do_storage_cat(self, flags, positionals):
        for url in positionals:
            if not self._matching(url):
                raise Failed("ERROR: (gcloud.storage.cat) The following URLs matched no objects or files:\n" + url)
        return "".join(self.text(found) for url in positionals for found in self._matching(url))

    # What is done once for a project.

    def do_services_enable(self, flags, positionals):
        pass

    do_projects_add_iam_policy_binding = do_iam_service_accounts_create = do_services_enable
    do_storage_buckets_add_iam_policy_binding = do_services_enable

    def do_storage_buckets_create(self, flags, positionals):
        self.state["bucket_missing"] = False

    def do_storage_rsync(self, flags, positionals):
        source, target = positionals
        for path in sorted(Path(source).rglob("*")):
            if path.is_file():
                self.put(f"{target}/{path.relative_to(source)}", path.read_bytes())

    def do_storage_ls(self, flags, positionals):
        found = [url for pattern in positionals for url in self._matching(pattern)]
        if not found:
            raise Failed("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
        return "\n".join(found) + "\n"

    def do_storage_objects_list(self, flags, positionals):
        self._location(flags)
        found = []
        for pattern in positionals:
            for url in self._matching(pattern):
                bucket, _, name = url.removeprefix("gs://").partition("/")
                entry = self.state["objects"][url]
                found.append({
                    "bucket": bucket, "name": name, "generation": str(entry["generation"]), "update_time": entry["time"]
                })  # fmt: skip
        return json.dumps(found)


def main():
    """As a program: one at a time, on the state of the folder."""
    import fcntl

    folder = Path(os.environ["FAKE_GCLOUD"])
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fake = Fake(folder)
        status, out, err = fake(["gcloud", *sys.argv[1:]])
        fake.save()
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.stdout.flush()
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
