"""The arithmetic of lengths: t5's own numbers, the longest segment by search, and what is refused."""

import json
import re

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import denoising, lengths
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.named import OBJECTIVES

IDS = Ids(size=32100, sentinels=100, eos=1, encode=lambda text: [5] * (len(text) > 0) * 4)


@pytest.mark.parametrize(
    "inputs, density, mean, expected",
    [
        (512, 0.15, 3.0, (568, 114)),
        (512, 0.15, 2.0, (552, 126)),
        (512, 0.15, 5.0, (581, 105)),
        (512, 0.15, 10.0, (591, 99)),
        (1024, 0.15, 20.0, (1193, 189)),
    ],
)
def test_the_lengths_of_the_paper(inputs, density, mean, expected):
    assert lengths.span_corruption(inputs, density, mean) == expected


def test_the_lengths_of_t5(references):
    for case in json.loads((references / "t5_objectives.json").read_text())["lengths"]:
        asked = (case["inputs"], case["density"], case["mean"])
        if asked[1:] == (0.5, 1.0) or lengths.counts(case["lengths"][0], *asked[1:])[1] < 1:
            continue  # refused here: there is too little text between so many spans, or no span
        assert lengths.span_corruption(*asked) == tuple(case["lengths"]), asked


@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.15, 2.0), (0.25, 5.0), (0.1, 10.0), (0.5, 3.0)])
def test_lengths_are_the_longest_segment_that_fits(density, mean):
    def used(tokens):
        noise = int(np.round(tokens * density))
        spans = int(np.round(noise / mean))
        return tokens - noise + spans + 1, noise + spans + 1

    for inputs in range(60, 700, 13):
        tokens, targets = lengths.span_corruption(inputs, density, mean)
        longest = max(n for n in range(4 * inputs) if used(n)[0] <= inputs)
        if density == 0.5 and used(longest)[1] > used(longest)[0]:
            assert (tokens, targets) == (longest - 1, used(longest)[1] - 1)
        else:
            assert (tokens, targets) == (longest, used(longest)[1])


def test_inputs_that_are_too_short_say_the_length_needed():
    for length in (0, 1, 5, 9):
        with pytest.raises(
            UserError, match=r"TASK_FEATURE_LENGTHS gives the inputs \d tokens. .* needs (\d+)"
        ) as caught:
            lengths.span_corruption(length)
        needed = int(re.search(r"needs (\d+)", str(caught.value))[1])
    lengths.span_corruption(needed)
    with pytest.raises(UserError, match="255 are left, too few to stand between 256 spans"):
        lengths.span_corruption(512, 0.5, 1.0)
    with pytest.raises(UserError, match="noise_density 1.5"):
        lengths.span_corruption(512, 1.5)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"span_corruption_mean_20"}))
def test_every_objective_says_which_lengths_it_needs(name):
    """From lengths that are too short, following what the errors propose leads to lengths that it takes."""
    given = {"inputs": 200, "targets": 2}
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS is None"):
        OBJECTIVES[name](None, IDS)
    if name in ("causal_lm", "full_lm"):
        OBJECTIVES[name](given, IDS)
        given["targets"] = 1
    for _ in range(9):
        try:
            OBJECTIVES[name](given, IDS)
            break
        except UserError as error:
            found = re.search(r"'inputs': (\d+), 'targets': (\d+)", str(error))
            assert found, error
            assert given["inputs"] == int(found[1]) and given["targets"] < int(found[2])
            given["targets"] = int(found[2])
    else:
        pytest.fail("the proposals lead nowhere")


def test_lengths_that_cannot_hold_the_pairs():
    with pytest.raises(UserError, match=r"gives the targets 10 tokens. .* makes 114 .*'inputs': 512, 'targets': 114"):
        denoising.span_corruption({"inputs": 512, "targets": 10}, IDS)
    with pytest.raises(UserError, match="Their 28 spans need a sentinel each, and the vocabulary has 10"):
        denoising.span_corruption({"inputs": 512, "targets": 114}, IDS._replace(sentinels=10))
    with pytest.raises(UserError, match="Their 114 spans need a sentinel each, and the vocabulary has 100"):
        denoising.span_corruption({"inputs": 2048, "targets": 512}, IDS)
    with pytest.raises(UserError, match="gives the inputs 2 tokens. Prefix LM needs 3"):
        denoising.prefix_lm({"inputs": 2, "targets": 20}, IDS)
    with pytest.raises(UserError, match="noise_density 0.7. The targets make up at most half"):
        denoising.prefix_lm({"inputs": 20, "targets": 20}, IDS, noise_density=0.7)
    with pytest.raises(UserError, match="noise_density 0.* between 0 and 1"):
        denoising.bert_style({"inputs": 20, "targets": 20}, IDS, noise_density=0.0)
