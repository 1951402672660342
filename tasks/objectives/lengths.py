"""How many tokens a segment may have for inputs and targets to fit their rows. Lengths are computed, never guessed."""

import math
from collections.abc import Callable, Mapping

from t5x_lite.errors import UserError


def given(lengths: Mapping[str, int] | None, objective: str, proposed: str = "{'inputs': 512, 'targets': 512}"):
    """(tokens of the inputs, tokens of the targets), the end of sequence included.

    Raises:
      UserError: they are not both given.
    """
    if not lengths or not {"inputs", "targets"} <= set(lengths):
        raise UserError(
            f"TASK_FEATURE_LENGTHS is {dict(lengths) if lengths else lengths}",
            f"{objective} cuts text to the lengths of inputs and targets",
            f'Set --gin.TASK_FEATURE_LENGTHS="{proposed}"',
        )
    return lengths["inputs"], lengths["targets"]


def require_targets(inputs: int, targets: int, needed: int, objective: str) -> None:
    """Refuses targets that are too short for what an objective makes of the inputs' length."""
    if targets < needed:
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the targets {targets} tokens",
            f"{objective} of {inputs} input tokens makes {needed} target tokens",
            f"Set --gin.TASK_FEATURE_LENGTHS=\"{{'inputs': {inputs}, 'targets': {needed}}}\"",
        )


def require_inputs(inputs: int, needed: int, objective: str) -> None:
    """Refuses inputs that are too short for an objective."""
    if inputs < needed:
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the inputs {inputs} tokens",
            f"{objective} needs {needed}",
            f"Set --gin.TASK_FEATURE_LENGTHS to inputs of at least {needed}",
        )


def check_density(noise_density: float, objective: str) -> None:
    """Refuses a fraction of noise that leaves nothing to predict or nothing to predict it from."""
    if not 0 < noise_density < 1:
        raise UserError(
            f"{objective} with noise_density {noise_density}",
            "the density lies between 0 and 1",
            "Correct noise_density of the task",
        )


def iid_targets(tokens: int, noise_density: float) -> int:
    """The mean length of targets that show each run of noise behind a sentinel, the end of sequence included.

    Of n tokens, n d are noise and n d (1 - d) begin a run of noise, each with a sentinel of its own in front.
    """
    return math.ceil(tokens * noise_density * (2 - noise_density)) + 1


def counts(tokens: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """(noise tokens, noise spans) that lengths are reckoned with, rounded half to even in double precision."""
    noise = round(tokens * noise_density)
    return noise, round(noise / mean_span)


def span_corruption(
    inputs_length: int, noise_density: float = 0.15, mean_span: float = 3.0, opening: int = 0
) -> tuple[int, int]:
    """The segment length that span corruption turns into exactly full inputs, and the length of its targets.

    The arithmetic is that of random_spans_helper in `t5.data.preprocessors`.

    Args:
      inputs_length: tokens of the inputs, the end of sequence included.
      noise_density: fraction of the tokens that is cut out.
      mean_span: mean length of a span, in tokens.
      opening: tokens that stand in front of the inputs whatever the segment is.

    Returns:
      (tokens_length, targets_length): the raw tokens of a segment, and the tokens of its targets, the end of
      sequence included. T5's baseline: 512 -> (568, 114).

    Raises:
      UserError: the density or span is out of range, or the inputs are too short for one span.
    """
    if not 0 < noise_density < 1 or mean_span < 1:
        raise UserError(
            f"Span corruption with noise_density {noise_density} and mean_span {mean_span}",
            "the density lies between 0 and 1, and a span has at least one token",
            "Correct noise_density and mean_span of the task",
        )

    def made(tokens: int) -> tuple[int, int]:
        noise, spans = counts(tokens, noise_density, mean_span)
        return opening + tokens - noise + spans + 1, noise + spans + 1

    tokens = max(inputs_length - opening - 1, 0)
    while made(tokens + 1)[0] <= inputs_length:
        tokens += 1
    noise, spans = counts(tokens, noise_density, mean_span)
    if spans > tokens - noise:
        raise UserError(
            f"Span corruption with noise_density {noise_density} and mean_span {mean_span}",
            f"of {tokens} tokens {tokens - noise} are left, too few to stand between {spans} spans",
            "Give the task a smaller noise_density or a larger mean_span",
        )
    if spans < 1:
        shortest = _first(lambda n: counts(n, noise_density, mean_span)[1] > 0)
        needed = made(shortest)[0] if shortest else "more"
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the inputs {inputs_length} tokens",
            f"span corruption with density {noise_density} and mean span {mean_span} needs {needed} for one span",
            f"Set --gin.TASK_FEATURE_LENGTHS to inputs of at least {needed}",
        )
    targets = made(tokens)[1]
    if noise_density == 0.5 and targets > made(tokens)[0] - opening:
        # t5's exception: with half of the tokens cut out, the targets are to be as long as the inputs.
        tokens, targets = tokens - 1, targets - 1
    return tokens, targets


def _first(holds: Callable[[int], bool], most: int = 100_000) -> int | None:
    return next((n for n in range(1, most) if holds(n)), None)
