"""Metrics of whole texts: BLEU for translations, ROUGE for summaries, edit distance."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

_ROUGE = ("rouge1", "rouge2", "rougeLsum")


def bleu(
    targets: Sequence[str] | Sequence[list[str]], predictions: Sequence[str], tokenizer: str = "intl"
) -> dict[str, float]:
    """BLEU of a corpus, with the settings of Raffel et al. (2020), section 3.1.3: smoothing "exp", case counts.

    Args:
      targets: a reference for each prediction, or a list of such lists, each with one reference for each prediction.
      predictions: translations.
      tokenizer: a tokenizer of sacrebleu.
    """
    import sacrebleu

    references = targets if isinstance(targets[0], list) else [targets]
    # force: no warning that predictions look tokenized. It does not change the score.
    score = sacrebleu.corpus_bleu(
        predictions, references, smooth_method="exp", smooth_value=0.0, force=True, lowercase=False,
        tokenize=tokenizer, use_effective_order=False,
    )  # fmt: skip
    return {"bleu": score.score}


def rouge(
    targets: Sequence[str], predictions: Sequence[str], score_keys: Sequence[str] = _ROUGE, **kwargs
) -> dict[str, float]:
    """ROUGE as the median F of 1000 resamples of the corpus, in percent.

    The resamples are the same at every call, so that a score can be had again; rouge-score itself draws others.

    Args:
      targets: summaries.
      predictions: summaries.
      score_keys: types of rouge-score.
      **kwargs: go to rouge_score.rouge_scorer.RougeScorer.

    Raises:
      ValueError: there is no summary.
    """
    from rouge_score.scoring import BootstrapAggregator

    aggregator = BootstrapAggregator()
    for scores in _rouge(targets, predictions, score_keys, kwargs):
        aggregator.add_scores(scores)
    # The aggregator knows only numpy's global generator.
    state = np.random.get_state()
    np.random.seed(0)
    try:
        result = aggregator.aggregate()
    finally:
        np.random.set_state(state)
    return {key: 100 * float(result[key].mid.fmeasure) for key in score_keys}


def rouge_mean(
    targets: Sequence[str], predictions: Sequence[str], score_keys: Sequence[str] = _ROUGE, **kwargs
) -> dict[str, float]:
    """ROUGE as the mean F, in percent. Arguments and errors as `rouge`."""
    scores = list(_rouge(targets, predictions, score_keys, kwargs))
    return {key: 100 * float(np.mean([score[key].fmeasure for score in scores])) for key in score_keys}


def _rouge(targets, predictions, score_keys, kwargs) -> Iterator[dict]:
    from rouge_score.rouge_scorer import RougeScorer

    if not len(targets) or not len(predictions):
        raise ValueError("ROUGE of no summaries is undefined")
    scorer = RougeScorer(rouge_types=score_keys, **kwargs)
    for target, prediction in zip(targets, predictions):
        yield scorer.score(_by_sentence(target), _by_sentence(prediction))


def _by_sentence(summary: str) -> str:
    """rougeLsum takes lines for sentences; summaries of CNN/Daily Mail have their full stops apart."""
    return summary.replace(" . ", " .\n")


def edit_distance(targets: Sequence[str], predictions: Sequence[str], lower: bool = True) -> dict[str, float]:
    """How many words must be put in, left out or replaced to make a target of its prediction.

    Args:
      targets: texts.
      predictions: texts.
      lower: case does not count.

    Returns:
      mean_edit, median_edit, min_edit, max_edit and sum_edit over the corpus; the first is what a task counts with.
    """
    import editdistance

    distances = [
        editdistance.eval(_words(prediction, lower), _words(target, lower))
        for prediction, target in zip(predictions, targets)
    ]
    aggregates = {"mean": np.mean, "median": np.median, "min": min, "max": max, "sum": sum}
    return {f"{name}_edit": float(aggregate(distances)) for name, aggregate in aggregates.items()}


def _words(text: str, lower: bool) -> list[str]:
    """Between two separators in a row stands an empty word, which counts."""
    return re.split(r"\W", text.lower() if lower else text)
