"""From inputs to generated tokens: greedy, beam search or sampling, by one model or the mean of several.

A rule (beam.py, sampling.py) turns the logits of a step into tokens; incremental.py gives the logits that follow them.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.errors import UserError
from t5x_lite.model import beam, incremental, sampling

Array = jax.Array

# What each method uses besides.
USED = {
    "greedy": (),
    "beam": ("beam_size", "length_penalty", "num_return"),
    "sample": ("num_return", "temperature", "top_k", "top_p"),
}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How tokens are chosen; docs/decoding.md has the rules.

    Args:
      method: "greedy", the most probable token at each step; "beam"; "sample".
      beam_size: sequences that a beam search continues. 1 is greedy.
      length_penalty: exponent alpha of a beam's score, log-probability / ((5 + length) / 6) ** alpha; 0.6 in the paper.
      num_return: sequences of each input: the best of a beam, or samples.
      temperature: divides the logits of a sample; 0 is greedy.
      top_k: draws among so many most probable tokens; 0: all.
      top_p: draws among the fewest most probable tokens of so much probability together; 1: all.

    Raises:
      UserError: a value is out of range, or is given to a method that does not use it.
    """

    method: Literal["greedy", "beam", "sample"] = "greedy"
    beam_size: int = 4
    length_penalty: float = 0.6
    num_return: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.method not in USED:
            raise _wrong("decode", self.method, "it must be greedy, beam or sample")
        for name, least in (("beam_size", 1), ("num_return", 1), ("top_k", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise _wrong(name, value, f"it must be a whole number of at least {least}")
        for name in ("length_penalty", "temperature"):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise _wrong(name, getattr(self, name), "it must be a number of at least 0")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise _wrong("top_p", self.top_p, "it must be above 0 and at most 1")
        if self.method == "beam" and self.num_return > self.beam_size:
            raise _wrong("num_return", self.num_return, f"a beam of {self.beam_size} has no more than that")
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name not in USED[self.method] and value != field.default:
                raise _wrong(field.name, value, f"--decode={self.method} does not use it", "leave it out")

    @property
    def width(self) -> int:
        """Sequences of each row that are decoded beside each other."""
        return {"greedy": 1, "beam": self.beam_size, "sample": self.num_return}[self.method]


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(name: str, value, why: str, fix: str | None = None) -> UserError:
    return UserError(f"--{name} is {value!r}", why, fix or f"Set --{name}")


def generate(
    graphdefs: Sequence[nnx.GraphDef],
    params: Sequence[dict],
    tokens: Array,
    row_ids: Array,
    *,
    strategy: Strategy,
    length: int,
    eos: int,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Decodes until every row is done, at most `length` tokens.

    Args:
      graphdefs: from `network.split`, of each model. Several are an ensemble: the mean of their logits counts.
      params: the parameters of each.
      tokens: [B, S] input ids, 0 behind them.
      row_ids: int32 [B]. What is sampled for a row depends on its id, the seed and the number of the sample, and on
        nothing else of the batch.
      strategy: how tokens are chosen.
      length: T, the most tokens to produce, the end token included.
      eos: id that ends a sequence.
      seed: of sampling.

    Returns:
      Ids [B, N, T], 0 behind the end; scores [B, N] by which the N are ranked; their log-probabilities [B, N] (nats,
      the end token included), those of the models themselves whatever is drawn from. Best first.
    """
    models = [nnx.merge(graphdef, part) for graphdef, part in zip(graphdefs, params, strict=True)]
    rules = models[0].token_embedder.rules
    by_row = rules.spec("batch", None, None)

    def mean(logits: Sequence[Array]) -> Array:
        # Whole along the vocabulary: what follows picks from all of it.
        return jax.sharding.reshard(sum(logits[1:], start=logits[0]) / len(logits), by_row)

    begin, advance, unfinished, result = _rule(strategy, eos, seed, jax.sharding.reshard(row_ids, rules.spec("batch")))
    width = strategy.width
    first, caches, steps = zip(*(incremental.prefill(model, tokens, width, length) for model in models))
    state = begin(jnp.zeros((len(tokens), width, length), jnp.int32, out_sharding=by_row))
    state = advance(state, mean(first), jnp.int32(0))

    def goes_on(carry) -> Array:
        state, at, _ = carry
        return (at < length) & unfinished(state)

    def go_on(carry):
        state, at, caches = carry
        found = [step(state["tokens"], at - 1, state["ancestry"], cache) for step, cache in zip(steps, caches)]
        logits, caches = zip(*found)
        return advance(state, mean(logits), at), at + 1, caches

    state, _, _ = jax.lax.while_loop(goes_on, go_on, (state, jnp.int32(1), caches))
    return tuple(x[:, : strategy.num_return] for x in result(state))


def _rule(strategy: Strategy, eos: int, seed: int, row_ids: Array) -> tuple:
    """(begin, advance, unfinished, result) of a strategy.

    A beam of 1 is greedy, as in Mesh TensorFlow: by a beam's rules it could stop at an end token that is but the second
    most probable.
    """
    if strategy.method == "beam" and strategy.beam_size > 1:
        alpha = strategy.length_penalty
        advance = functools.partial(beam.advance, eos=eos, alpha=alpha)
        return (
            beam.begin,
            advance,
            functools.partial(beam.unfinished, alpha=alpha),
            functools.partial(beam.result, alpha=alpha),
        )
    choose = sampling.most_probable
    if strategy.method == "sample" and strategy.temperature > 0:
        keys = sampling.sample_keys(seed, row_ids, strategy.num_return)

        def choose(logits: Array, step: Array) -> Array:
            return sampling.drawn(
                sampling.filtered(logits, strategy.temperature, strategy.top_k, strategy.top_p), keys, step
            )

    result = sampling.result
    return sampling.begin, functools.partial(sampling.advance, eos=eos, choose=choose), sampling.unfinished, result
