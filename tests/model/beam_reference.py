"""Beam search of one row in plain Python, written from the rules: lists of (log-probability, tokens), nothing batched.

`search` has T5's rules (docs/decoding.md) and, for the two in which they differ, those of transformers.
"""

import numpy as np


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def search(next_logits, width, length, eos, alpha, as_in_transformers=False):
    """The n-best list of a row.

    Args:
      next_logits: list of token tuples -> logits of the next token of each.
      width, length, eos, alpha: of the search.
      as_in_transformers: a sequence that ends counts only if it is among the `width` best continuations and not the
        2 * `width` best, and at the greatest length the live ones count as ended.

    Returns:
      [(score, log-probability, tokens)], those that ended first; and the number of steps.
    """
    live, done = [(0.0, ())], []
    for step in range(1, length + 1):
        found = [
            (total + gain, tokens + (token,))
            for (total, tokens), logits in zip(live, next_logits([tokens for _, tokens in live]))
            for token, gain in enumerate(log_softmax(logits))
        ]
        found = sorted(found, key=lambda pair: -pair[0])[: 2 * width]
        counted = found[:width] if as_in_transformers else found
        for total, tokens in counted:
            if tokens[-1] == eos or (as_in_transformers and step == length):
                done.append((total / penalty(step, alpha), total, tokens))
        done = sorted(done, key=lambda entry: -entry[0])[:width]
        live = [pair for pair in found if pair[1][-1] != eos][:width]
        if len(done) == width and live[0][0] / penalty(length, alpha) < done[-1][0]:
            break
    if as_in_transformers:
        return done, step
    return done + [(total / penalty(length, alpha), total, tokens) for total, tokens in live][: width - len(done)], step
