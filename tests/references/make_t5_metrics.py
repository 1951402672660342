"""Writes tests/references/t5_metrics.json: postprocessors and metrics as t5 0.9.4 computes them, on invented data.

In an environment of its own:

    pip install t5==0.9.4 sacrebleu==2.6.0 rouge-score==0.1.2 scikit-learn==1.9.1 scipy==1.17.1
    python tests/references/make_t5_metrics.py

"metrics" is a list of [name, targets, predictions or scores, keyword arguments, values]; the
names are the keys of METRICS. "postprocessors" is a list of [name, output, example, is_target,
keyword arguments, result], where the text of an example stands for bytes.
"""

import json
import random
from pathlib import Path

import numpy as np
from t5.data import postprocessors
from t5.evaluation import metrics

WORDS = (
    "the a an The A harbour Lantern quietly drifts, past seven boats. Zoë's brother said: “wait” until noon! "
    "Straße naïve 3.5 % 日本 語。 ‘old’ mill-wheel _turns_ on 12 and 30 ` ´ U.N. it's"
).split()

METRICS = {
    "bleu": metrics.bleu,
    "rouge": metrics.rouge,
    "edit_distance": metrics.edit_distance,
    "squad": metrics.squad,
    "trivia_qa": metrics.trivia_qa,
    "span_squad": metrics.span_squad,
    "coqa_f1": metrics.coqa_f1,
    "accuracy": metrics.accuracy,
    "sequence_accuracy": metrics.sequence_accuracy,
    "all_match": metrics.all_match,
    "pearson_corrcoef": metrics.pearson_corrcoef,
    "spearman_corrcoef": metrics.spearman_corrcoef,
    "matthews_corrcoef": metrics.sklearn_metrics_wrapper(
        "matthews_corrcoef", metric_post_process_fn=lambda value: 100 * value
    ),
    "log_loss": metrics.sklearn_metrics_wrapper("log_loss", "nats", float),
    "mean_2class_f1": metrics.mean_multiclass_f1(2),
    "mean_3class_f1": metrics.mean_multiclass_f1(3),
    "f1_score_with_invalid": metrics.f1_score_with_invalid,
    "multirc_f1_over_all_answers": metrics.multirc_f1_over_all_answers,
    "mean_group_all_match": metrics.mean_group_metric(metrics.all_match),
    "mean_group_with_subgroups": metrics.mean_group_metric(metrics.all_match, return_subgroup_scores=True),
    "deduplicate_squad": metrics.deduplicate_metric(metrics.squad),
    "auc": metrics.auc,
    "score_auc": metrics.score_auc,
    "rank_classification": metrics.rank_classification,
}


class Made(random.Random):
    """Invented data."""

    def text(self, longest):
        return " ".join(self.choices(WORDS, k=self.randint(0, longest)))

    def like(self, text):
        """A text of which a few words are others."""
        return " ".join(self.choice(WORDS) if self.random() < 0.2 else word for word in text.split(" "))

    def summary(self):
        return " . ".join(self.text(9) for _ in range(self.randint(1, 4)))


def texts(made):
    targets = [made.summary() for _ in range(6)]
    predictions = [made.like(text) for text in targets]
    yield "bleu", targets, predictions, {}
    yield "bleu", targets, predictions, {"tokenizer": "13a"}
    yield "bleu", [targets, targets[::-1]], predictions, {}
    yield "bleu", targets, [made.text(3) for _ in targets], {}
    yield "rouge", targets, predictions, {}
    yield "rouge", targets, predictions, {"score_keys": ["rougeL"], "use_stemmer": True}
    yield "rouge", targets[:1], predictions[:1], {}
    yield "edit_distance", targets, predictions, {}
    yield "edit_distance", targets, [text.upper() for text in targets], {"lower": False}


def answers(made):
    targets = [[made.text(3) for _ in range(made.randint(1, 3))] for _ in range(40)] + [["The"], [""], ["a-b", "ab"]]
    predictions = [made.like(made.choice(answers)) for answers in targets[:-2]] + ["an", "a b"]
    for name in ("squad", "trivia_qa", "coqa_f1"):
        yield name, targets, predictions, {}
    groups = [{"group": made.randrange(15), "value": answers} for answers in targets]
    yield "deduplicate_squad", groups, [{"value": text} for text in predictions], {}
    spans = ["start: 1 end: 1", "start: 0 end: 3", "start: 2 end: 1", "start: 0 end: 99", "start: x end: 2", "end: 1"]
    contexts = [made.summary() for _ in range(30)]
    targets = [{"context": text, "answers": [" ".join(text.split()[:3]), made.choice(WORDS)]} for text in contexts]
    yield "span_squad", targets, made.choices(spans, k=30), {}


def labels(made):
    for classes in (2, 3):
        targets = made.choices(range(classes), k=40)
        for predictions in (
            [target if made.random() < 0.6 else made.randint(-1, classes) for target in targets],
            [0] * 40,
            [-1] * 40,
            targets,
        ):
            for name in ("accuracy", "sequence_accuracy", "all_match", "matthews_corrcoef"):
                yield name, targets, predictions, {}
            yield f"mean_{classes}class_f1", targets, predictions, {}
            if classes == 2:
                yield "f1_score_with_invalid", targets, predictions, {}
                groups = [{"group": made.randrange(6), "value": target} for target in targets]
                values = [{"value": prediction} for prediction in predictions]
                for name in ("multirc_f1_over_all_answers", "mean_group_all_match", "mean_group_with_subgroups"):
                    yield name, groups, values, {}
    for name in ("f1_score_with_invalid", "matthews_corrcoef", "mean_3class_f1"):
        yield name, [0, 0, 0], [0, 0, 0], {}
    yield "accuracy", ["one", "two", ""], ["one", "Two", ""], {}
    yield "log_loss", [0, 1, 1], [0.25, 0.5, 0.875], {}


def numbers(made):
    targets = [round(made.uniform(0, 5) * 5) / 5 for _ in range(30)]
    near = [max(-1.0, target + round(made.gauss(0, 1), 1)) for target in targets]
    for name in ("pearson_corrcoef", "spearman_corrcoef"):
        yield name, targets, near, {}
        yield name, targets, [2.5] * 30, {}
        yield name, [1.0] * 30, near, {}
        yield name, targets, [*near[:-1], float("nan")], {}
        yield name, targets, [*near[:-1], float("inf")], {}
    yield "auc", [int(target > 2) for target in targets], near, {}
    yield "auc", targets, near, {"targets_threshold": 3.0}
    yield "score_auc", targets, near, {"targets_threshold": 0.5}
    yield "auc", [0, 0, 0], [0.1, 0.2, 0.3], {}


def ranks(made):
    def examples(classes, several=False, right=None):
        rows = []
        for number in range(12):
            weight, good = made.choice([1.0, 0.5]), made.randrange(classes) if right is None else right
            for label in range(classes):
                correct = label == good or (several and made.random() < 0.3)
                rows.append([[number, label], correct, weight, made.randint(1, 6)])
        made.shuffle(rows)
        return rows

    for classes, rows in (
        (2, examples(2)),
        (3, examples(3)),
        (3, examples(3, several=True)),
        (2, examples(2, right=0)),
    ):
        scores = [round(made.uniform(-9, 0), 1) for _ in rows]
        for options in ({}, {"num_classes": classes}, {"num_classes": classes, "normalize_by_target_length": True}):
            yield "rank_classification", rows, scores, options
    rows = examples(4)[:25]
    yield "rank_classification", rows, [made.uniform(-9, 0) for _ in rows], {}


def outputs(made):
    for text in ("1.5", " 2 ", "-1e3", "nan", "inf", "1_0", "٣", "", "1,5", "five"):
        yield "string_to_float", text, {}, False, {}
    yield "string_to_float", "five", {}, True, {"default": 0.5}
    yield "lower_text", "ÀB ẞ İ", {}, False, {}
    for text in ("yes", "no", "Yes", "", "no "):
        yield "string_label_to_class_id", text, {}, False, {"label_classes": ["no", "yes"]}
    yield "string_label_to_class_id", "maybe", {}, True, {"label_classes": ["no", "yes"], "default": 7}
    example = {
        "answers": ["a Zoë", "", "日本"],
        "context": "Zoë’s boat",
        "idx/passage": 3,
        "idx/query": 5,
        "idx/question": 8,
        "idx": [3, 1],
        "is_correct": True,
        "targets": [11, 12, 1],
        "label": 1,
        "targets_pretokenized": "x",
    }
    for is_target in (False, True):
        for name in ("multirc", "record", "qa", "span_qa"):
            for text in ("True", "False", "true"):
                yield name, text, example, is_target, {}
        yield "rank_classification", -2.5, example, is_target, {}
        further = {"passthrough_feature_keys": ["label", "context"]}
        yield "rank_classification", -2.5, example | {"weight": 0.5}, is_target, further
    yield "wsc_simple", "anything", example, True, {}
    phrases = (
        "Bob", "bob", "Bob's hat", "Bob's", "the hat", "hat", " The  hat ", "fuzzy bunny", "the fuzzy  bunny",
        "bunny", "their", "", "the   a", "his Bob's  old hat", "Zoë", "ZOË", "bunny bob", "hat, the",
    )  # fmt: skip
    for prediction in phrases:
        for referent in phrases:
            yield "wsc_simple", prediction, {"targets_pretokenized": referent, "label": 1}, False, {}


def as_bytes(value):
    if isinstance(value, list):
        return np.array([as_bytes(item) for item in value])
    return value.encode() if isinstance(value, str) else value


def plain(value):
    """What JSON does not know: bytes and numpy's scalars."""
    return value.decode() if isinstance(value, bytes) else value.item()


def scored(name, targets, predictions, options):
    # rouge draws from numpy's generator.
    np.random.seed(0)
    if name == "rank_classification":
        targets = [(tuple(idx), *rest) for idx, *rest in targets]
    values = METRICS[name](targets, predictions, **options)
    return {key: float(value) for key, value in values.items()}


def main():
    made = Made(0)
    scores = [[*case, scored(*case)] for cases in (texts, answers, labels, numbers, ranks) for case in cases(made)]
    results = []
    for name, output, example, is_target, options in outputs(made):
        given = {key: as_bytes(value) for key, value in example.items()}
        result = getattr(postprocessors, name)(output, example=given, is_target=is_target, **options)
        results.append([name, output, example, is_target, options, result])
    lists = {"metrics": scores, "postprocessors": results}
    blocks = (
        f'"{key}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False, default=plain) for row in rows) + "\n]"
        for key, rows in lists.items()
    )
    path = Path(__file__).with_name("t5_metrics.json")
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
