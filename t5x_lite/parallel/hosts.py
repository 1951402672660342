"""The hosts of a run: how they find each other, what they must agree on, and how one ends when another is lost.

A host here is one process of JAX, with the devices that it drives: mostly one a machine; under SLURM or Open MPI with
several tasks on a machine, one a task.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import cloud_tpu_init, clusters, distributed  # JAX tells nobody else what it has found
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.errors import Preempted, RunError, UserError

# Where plain hosts say who they are: a flag, an environment variable and what it holds.
SETTINGS = {
    "coordinator_address": ("JAX_COORDINATOR_ADDRESS", "HOST:PORT of the first host"),
    "num_processes": ("JAX_NUM_PROCESSES", "how many hosts there are"),
    "process_id": ("JAX_PROCESS_ID", "the number of this host, from 0"),
}

# What JAX finds out by itself, by its names for them. (On Kubernetes it asks the cluster's API, also where one
# container is all there is.)
_CLUSTERS = ("gcetpu", "gketpu", "slurm", "ompi")

# Seconds: for all hosts to start, and for those that fail alike to say so each.
_STARTING, _FAILING = 300, 10

# Seconds after its timeout until JAX has told all hosts of one that is lost.
_SLACK = 5


@dataclasses.dataclass(frozen=True)
class Place:
    """One host among several.

    Args:
      coordinator: HOST:PORT that the first host listens on.
      count: of hosts.
      number: of this one, from 0.
      devices: numbers of the machine's devices that this one drives; None: all.
    """

    coordinator: str
    count: int
    number: int
    devices: tuple[int, ...] | None = None


def place(flags: Mapping[str, str | int | None], environment: Mapping[str, str] | None = None) -> Place | None:
    """Which host of a run this one is; None where it is alone. Asks flags, then environment, then the cluster.

    Args:
      flags: by the names of SETTINGS, None where one is not given.
      environment: default: os.environ.

    Raises:
      UserError: some settings are given and others neither given nor known, or they are no numbers or out of range.
    """
    environment = os.environ if environment is None else environment
    given, said = {}, {}
    for name, (variable, _) in SETTINGS.items():
        if flags.get(name) is not None:
            given[name], said[name] = flags[name], f"--{name}={flags[name]}"
        elif environment.get(variable):
            given[name], said[name] = environment[variable], f"{variable}={environment[variable]}"
    for name in ("num_processes", "process_id"):
        if name in given:
            given[name] = _whole(given[name], said[name])
    # Asking Cloud TPU takes a while.
    devices = None
    if len(given) < len(SETTINGS) and given.get("num_processes") != 1:
        found, devices = _detected(environment, given)
        if not given and not found:
            return None
        if absent := [name for name in SETTINGS if name not in found]:
            raise UserError(
                f"{' and '.join(said.values())} is given without {' and '.join(f'--{name}' for name in absent)}",
                "a host of several needs to know where the first one is, how many there are, and which of them it is; "
                "neither SLURM nor Open MPI nor Cloud TPU is there to tell",
                f"give {', '.join(f'--{name} or {SETTINGS[name][0]}' for name in absent)}, or none of the three where "
                "this host is alone",
            )
        given = found
    if given["num_processes"] == 1:
        return None
    number, count, coordinator = given["process_id"], given["num_processes"], str(given["coordinator_address"])
    if number >= count:
        raise UserError(
            f"{said.get('process_id', f'process {number}')} is not below {count}, the number of processes",
            "hosts are numbered from 0",
            "correct --process_id or --num_processes",
        )
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(
            f"{said.get('coordinator_address', coordinator)} is no HOST:PORT",
            "the first host listens there, and the others must reach it",
            "write for example --coordinator_address=10.0.0.1:8476",
        )
    return Place(coordinator, count, number, devices)


def check_alone() -> None:
    """Refuses a verb that several hosts have been given, each of which would do all of it.

    Raises:
      UserError: there are several.
    """
    if (own := place({})) is not None:
        raise UserError(
            f"this is host {own.number} of {own.count}",
            "only train runs on several hosts together; this verb uses the devices of one",
            "start it on one machine of its own, under SLURM with srun --nodes=1 --ntasks=1, and not on a slice of "
            "several TPU hosts",
        )


def _whole(value: str | int, said: str) -> int:
    if re.fullmatch(r"\d+", str(value)):
        return int(value)
    raise UserError(f"{said} is no number", "it counts hosts", "write a whole number")


def _detected(environment: Mapping[str, str], given: dict) -> tuple[dict, tuple[int, ...] | None]:
    """`given` with what the cluster adds, as far as there is one, and the devices of this host."""
    if jax.config.jax_platforms == "cpu" and cloud_tpu_init.running_in_cloud_tpu_vm:
        return given, None
    known = (kind for kind in clusters.ClusterEnv._cluster_types if kind.name in _CLUSTERS)
    cluster = next((kind for kind in known if kind.is_env_present()), None)
    if cluster is None:
        return given, None
    *found, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        *(given.get(name) for name in SETTINGS), None, cluster.name, _STARTING
    )
    # JAX takes one task for one device. A machine's only task has all of them.
    if cluster.name == "slurm" and re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        devices = None
    return dict(zip(SETTINGS, found)), None if devices is None else tuple(devices)


@contextlib.contextmanager
def joined(own: Place | None, timeout: int, safe: Callable[[], str]) -> Iterator[None]:
    """Within the context this host is one of a run; to be entered before JAX looks for devices.

    Where another host is lost, or the connection to it, JAX's coordination service notices after `timeout` seconds
    and aborts the process: this prints what is safe and how to go on, and ends it with exit status 1 instead.

    Args:
      own: from `place`; None changes nothing.
      timeout: seconds without a sign of life after which a host is lost.
      safe: says what of the run can be relied on.

    Raises:
      RunError: the hosts did not find each other.
    """
    if own is None:
        yield
        return
    # A signal is ours to handle: see loop.StopRequest.
    jax.config.update("jax_enable_preemption_service", False)
    end = _Ending(own, timeout, safe)
    restore = end.install()
    try:
        jax.distributed.initialize(
            own.coordinator, own.count, own.number, own.devices, "deactivate", _STARTING, timeout, timeout
        )
    except jax.errors.JaxRuntimeError as error:
        raise _unmet(own, f": {str(error).splitlines()[0]}") from error
    end.met = True
    try:
        yield
    except (Preempted, UserError, RunError) as error:
        end.because(error)
        if isinstance(error, Preempted):
            jax.distributed.shutdown()
        else:
            _wait_for_others()
        raise
    except Exception:
        wait_for_loss()  # of whatever kind: the CPU's collectives raise another one than devices do
        raise
    end.because(None)
    jax.distributed.shutdown()
    restore()


def _unmet(own: Place, why: str = f" within {_STARTING} s") -> RunError:
    return RunError(
        f"host {own.number} of {own.count} did not meet the others at {own.coordinator}{why}",
        "nothing has been read or written",
        "start the same command on all hosts, and let each reach that address",
    )


class _Ending:
    """What the process says and returns when JAX aborts it.

    Args:
      own: this host.
      timeout, safe: see `joined`.
    """

    def __init__(self, own: Place, timeout: int, safe: Callable[[], str]):
        self._own, self.timeout, self._safe, self._ended = own, timeout, safe, False
        self._error: BaseException | None = None
        self.met = False  # whether the hosts have found each other

    def because(self, error: BaseException | None) -> None:
        """From now on the run has ended, with this error or well: that another host has gone does not matter."""
        self._ended, self._error = True, error

    def install(self) -> Callable[[], None]:
        """Takes over SIGABRT, and returns a function that gives it back.

        Python's own handlers run in the main thread, which may wait for a device for ever: this one runs in the thread
        that aborts.
        """
        library = ctypes.CDLL(None)
        library.signal.restype = ctypes.c_void_p
        library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)  # lives as long as this object
        library.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))
        _keep.append(self)
        return lambda: library.signal(signal.SIGABRT, None)

    def _end(self, number: int) -> None:
        faulthandler.dump_traceback_later(20, exit=True)  # where a file system does not answer
        status = 1
        if self._ended:
            status = getattr(self._error, "exit_code", 0)
            kind = "preempted" if isinstance(self._error, Preempted) else "error"
            text = "" if self._error is None else f"t5x_lite: {kind}: {self._error}\n"
        else:
            error = self._lost() if self.met else _unmet(self._own)
            text = f"t5x_lite: error: {error}\n"
        os.write(2, text.encode())
        os._exit(status)

    def _lost(self) -> RunError:
        return RunError(
            f"host {self._own.number} of {self._own.count} ends because another one was lost, or the connection to it: "
            "see what JAX says above, and the log of that host",
            self._safe(),
            "start the same command on all hosts again",
        )


_keep: list[_Ending] = []


def _wait_for_others() -> None:
    """The first host takes the connection of all others with it: those that fail as it does have something to say."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        distributed.global_state.client.wait_at_barrier("t5x_lite/failing", 1000 * _FAILING)


def wait_for_loss() -> None:
    """To be called when a device has failed: where another host has gone, this ends the process and says so.

    JAX hears of a connection that breaks at once, and knows what to make of it when its timeout is over.
    """
    for end in _keep:
        time.sleep(end.timeout + _SLACK)


def is_first() -> bool:
    """Whether this host is alone or the first one: it writes and reports for all. Does not wake JAX's devices."""
    return distributed.global_state.process_id == 0


def count() -> int:
    """How many hosts there are, without waking JAX's devices."""
    return distributed.global_state.num_processes


def check_alike(what: str, value: str, fix: str) -> None:
    """Refuses hosts that differ; all of them call this in the same order.

    Args:
      what: names the value, as in `MODEL_DIR's checkpoints`; no two calls have one name.
      value: of this host.
      fix: how to make them alike.

    Raises:
      UserError: two of them differ.
    """
    if count() == 1:
        return
    client, folder = distributed.global_state.client, f"t5x_lite/alike/{what}/"
    client.key_value_set(f"{folder}{distributed.global_state.process_id}", value)
    client.wait_at_barrier(f"t5x_lite/alike/{what}", 1000 * _STARTING)
    values = {int(key.rpartition("/")[2]): found for key, found in client.key_value_dir_get(folder)}
    if other := next((host for host in sorted(values) if values[host] != values[0]), None):
        raise UserError(
            f"{what} on host {other} is {values[other]}, on host 0 it is {values[0]}",
            "the hosts of a run compute one thing together",
            fix,
        )


@functools.cache
def _vote(mesh: jax.sharding.Mesh):
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))  # one dimension over all axes
    return sharding, jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))


def any_of(flag: bool) -> bool | jax.Array:
    """Whether the flag is set on any host; all of them ask in the same order. Does not wait for the answer.

    The current mesh is over all devices.
    """
    if count() == 1:
        return flag
    mesh = jax.sharding.get_mesh()
    sharding, any_set = _vote(mesh)
    return any_set(jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.full(1, flag)))


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every host has whole, onto the devices of all."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def get(tree):
    """Arrays whole as numpy on every host; all of them ask in the same order."""
    return jax.device_get(jax.tree.map(_replicated, tree))


def _replicated(array: jax.Array) -> jax.Array:
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return jax.jit(lambda x: x, out_shardings=NamedSharding(array.sharding.mesh, PartitionSpec()))(array)


def host_words() -> str:
    """Who speaks, for a line of one host among several; empty where it is alone."""
    return f"host {distributed.global_state.process_id} of {count()}: " if count() > 1 else ""
