"""Completions and scores of any number of sequences, in batches of few shapes, by one model or by several as one."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jax.sharding import NamedSharding

from t5x_lite.data.buckets import batches, in_order, inputs_batch, pairs_batch
from t5x_lite.data.packing import feature_types
from t5x_lite.errors import UserError
from t5x_lite.model.decoding import USED, Strategy
from t5x_lite.parallel import hosts
from t5x_lite.program import Program, ensemble_score_step, generate_step

T = TypeVar("T")
Ids = Sequence[int]

# What tells two strategies of one method from each other, besides how many they return.
_OF_METHOD = {
    "greedy": (),
    "beam": ("beam_size", "length_penalty"),
    "sample": ("temperature", "top_k", "top_p", "seed"),
}


def strategy(args) -> Strategy:
    """The strategy of a command line.

    Args:
      args: has `decode` and `seed`, and other fields of a Strategy; None where a flag is not given.

    Raises:
      UserError: a value is out of range, or a flag is given to a method that does not use it.
    """
    if args.seed is not None and args.decode != "sample":
        raise UserError(f"--seed={args.seed} is given", f"--decode={args.decode} draws nothing", "leave it out")
    names = (field.name for field in dataclasses.fields(Strategy))
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    # Also one that says the default: --beam_size=4 alone is not meant greedily.
    if unused := [name for name in given if name not in USED[args.decode]]:
        name = unused[0]
        raise UserError(f"--{name} is {given[name]!r}", f"--decode={args.decode} does not use it", "leave it out")
    return Strategy(method=args.decode, **given)


def label(strategy: Strategy, seed: int = 0) -> str:
    """A strategy in words that tell it from all others, such as `beam beam_size=4 length_penalty=0.6`."""
    values = dataclasses.asdict(strategy) | {"seed": seed}
    names = _OF_METHOD[strategy.method] + (("num_return",) if strategy.num_return > 1 else ())
    return " ".join([strategy.method, *(f"{name}={values[name]}" for name in names)])


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model makes of one input.

    Args:
      ids: int32 [N, T], the best of N completions first; 0 behind the end.
      ranking: [N] what they are ordered by: of a beam, the log-probability with its length penalty.
      scores: [N] their log-probability in nats, end token included.
    """

    ids: np.ndarray
    ranking: np.ndarray
    scores: np.ndarray


class Completer:
    """Completes inputs; what it compiles serves the parameters of any step.

    Args:
      programs: of one mesh, under which it is called; several are an ensemble.
      strategy: how tokens are chosen.
      length: T, the most tokens of a completion.
      eos: the id that ends one.
      seed: of samples, which depend on it, the number of the input and their own alone.
    """

    def __init__(self, programs: tuple[Program, ...], strategy: Strategy, length: int, eos: int, seed: int = 0):
        self._program = programs[0]
        self._step = generate_step(programs, strategy, length, eos, seed)
        self._by_row = NamedSharding(self._program.mesh, self._program.rules.spec("batch"))

    def __call__(
        self,
        params: tuple[dict, ...],
        items: Iterable[T],
        inputs_of: Callable[[T], Ids],
        rows: int,
        done: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[T, Completion]]:
        """Completes the items in order.

        Args:
          params: one of each program.
          items: all of them, taken as they are needed.
          inputs_of: the input ids of an item, at least one.
          rows: of a batch; they divide over the devices.
          done: how many items, from the first on, are passed over.
          check: is called before each batch.
        """

        def compute(batch: list[tuple[int, T]]):
            check()
            # A row without an item is another one again: an empty one might never end.
            numbers, sequences = zip(*((number, inputs_of(item)) for number, item in _filled(batch, rows)))
            tokens = hosts.put(inputs_batch(sequences, rows), self._program.batch_sharding)
            return self._step(params, tokens, hosts.put(np.array(numbers, np.int32), self._by_row))

        planned = batches(items, lambda item: (len(inputs_of(item)),), rows, done)
        for item, arrays in in_order(_answers(planned, compute), done):
            yield item, Completion(*arrays)


class Scorer:
    """Log-probabilities of given targets; what it compiles serves the parameters of any step.

    Args:
      programs: see `Completer`.
    """

    def __init__(self, programs: tuple[Program, ...]):
        self._program, self._step = programs[0], ensemble_score_step(programs)
        # A decoder alone has the targets behind the inputs, whose own log-probability is not asked for.
        features = feature_types({"inputs": 1, "targets": 1}, False, self._program.convert)
        self._inputs_first = "encoder_input_tokens" not in features

    def __call__(
        self,
        params: tuple[dict, ...],
        items: Iterable[T],
        pair_of: Callable[[T], tuple[Ids, Ids]],
        rows: int,
        done: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[T, float]]:
        """The items in order, each with the log-probability of its targets in nats; arguments as of `Completer`."""

        def compute(batch: list[tuple[int, T]]):
            check()
            features = pairs_batch([pair_of(item) for _, item in batch], rows, self._program.convert)
            own = self._program.batch_sharding
            by_token, _ = self._step(params, {name: hosts.put(array, own) for name, array in features.items()})
            return (by_token,)

        def sizes(item: T) -> tuple[int, int]:
            inputs, targets = pair_of(item)
            return len(inputs), len(targets)

        for item, (by_token,) in in_order(_answers(batches(items, sizes, rows, done), compute), done):
            inputs, targets = pair_of(item)
            first = len(inputs) if self._inputs_first else 0
            yield item, float(by_token[first : first + len(targets)].sum(dtype=np.float64))


def _filled(batch: list[T], rows: int) -> list[T]:
    return batch + batch[:1] * (rows - len(batch))


def _answers(planned: Iterable[list[tuple[int, T]]], compute: Callable) -> Iterator[tuple[int, tuple[T, list]]]:
    """Each number with its item and its row of each array; the devices work on a batch while another is looked at."""

    def ready(batch, arrays):
        arrays = hosts.get(arrays)
        for row, (number, item) in enumerate(batch):
            yield number, (item, [array[row] for array in arrays])

    before = None
    for batch in planned:
        now = batch, compute(batch)
        if before is not None:
            yield from ready(*before)
        before = now
    if before is not None:
        yield from ready(*before)
