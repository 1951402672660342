"""Writes tests/references/t5_examples.json: what the preprocessors of T5 make of invented records.

T5 pins other versions than we do, so it needs an environment of its own:

    python -m venv t5 && t5/bin/pip install t5==0.9.4
    t5/bin/python tests/references/make_t5_examples.py

The file holds a list of {"module", "function", "arguments", "records", "examples"}: a function of tasks/formats, its
arguments, its records, and for each record the list of examples of T5, or null where T5 fails.
"""

import functools
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from t5.data import preprocessors

HERE = Path(__file__).parent
ODD = "  A\ttab ,\n\na break ;\va vertical one\u00a0(no-break) É ß 文字—“quoted” \\ \\1 \\\\ $5 ^ * [x] {0} 'it's'.  "


def multirc(dataset, label_names):
    names = ("question", "answer", "paragraph")
    return preprocessors.glue(dataset, benchmark_name="multirc", label_names=label_names, feature_names=names)


def wic(dataset, label_names):
    names = ("sentence1", "sentence2", "word")
    return preprocessors.glue(dataset, benchmark_name="wic", label_names=label_names, feature_names=names)


def axb(dataset, label_names):
    names = {"premise": "sentence1", "hypothesis": "sentence2", "label": "label", "idx": "idx"}
    return preprocessors.glue(
        preprocessors.rekey(dataset, key_map=names), benchmark_name="rte", label_names=label_names
    )


def trivia_question(dataset):
    """The preprocessors of the notebook notebooks/t5-trivia.ipynb; t5 itself does not have them."""

    def normal(text):
        return tf.strings.regex_replace(tf.strings.lower(text), "'(.*)'", r"\1")

    return dataset.map(
        lambda x: {
            "inputs": tf.strings.join(["trivia question: ", normal(x["question"])]),
            "targets": normal(x["answer"]["value"] if isinstance(x["answer"], dict) else x["answer"]),
        }
    )


OURS = {"multirc": multirc, "wic": wic, "axb": axb, "trivia_question": trivia_question}


def tensors(value):
    """A record with TFDS's types: int32, float32, string."""
    if isinstance(value, dict):
        return {key: tensors(part) for key, part in value.items()}
    first = value[0] if value and isinstance(value, list) else value
    kind = {bool: tf.bool, int: tf.int32, float: tf.float32}.get(type(first), tf.string)
    return tf.constant(value, kind)


def plain(value):
    """A feature of an example as JSON has it."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def examples(preprocessor, record):
    """The examples of one record, None where T5 fails."""
    try:
        dataset = preprocessor(tf.data.Dataset.from_tensors(tensors(record)))
        return [{key: plain(value) for key, value in x.items()} for x in dataset.as_numpy_iterator()]
    except (tf.errors.OpError, ValueError):
        return None


def texts():
    """Pairs of texts with what is easily lost."""
    yield "The kettle sang.", "Something in the kitchen made a sound."
    yield ODD, "plain"
    yield "", " "
    yield "a <br> b<br><b>c</b> <<b>b> </ b> <B>", "\n"
    yield "Ünïcödé \u2003 ẞtraße\u0000 nul 🫖", "<unk> </s> <extra_id_0>"


def cases():
    """(module, function, arguments, records)."""
    pairs = list(texts())
    two = ["not_so", "so"]
    yield (
        "glue",
        "glue",
        {"benchmark_name": "mrpc", "label_names": two},
        [{"sentence2": b, "sentence1": a, "label": label, "idx": 7} for (a, b), label in zip(pairs, [0, 1, -1, 0, 1])]
        + [{"sentence1": "a", "sentence2": "b", "label": label, "idx": 0} for label in (2, -2)],
    )
    yield (
        "glue",
        "glue",
        {"benchmark_name": "mnli", "label_names": ["yes", "maybe", "no"]},
        [{"premise": a, "hypothesis": b, "idx": n, "label": 2} for n, (a, b) in enumerate(pairs)],
    )
    yield "glue", "glue", {"benchmark_name": "copa", "label_names": ["choice1", "choice2"]}, [
        {
            "premise": "The lamp went out.", "choice1": "It grew dark.", "choice2": "It grew late.",
            "question": "effect", "label": 0, "idx": 3,
        }
    ]  # fmt: skip
    yield (
        "glue",
        "glue",
        {"benchmark_name": "b", "label_names": two, "feature_names": ["z", "a"], "id_key": None},
        [{"a": "first", "z": "last", "m": "left out", "label": 1}],
    )
    yield (
        "glue",
        "glue",
        {"benchmark_name": "b", "label_names": two, "id_key": "key"},
        [{"text": "t", "key": "the key, which is text too", "label": 1}],
    )
    scores = [0.0, 5.0, 3.8, 3.799, 2.5, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 2.7, 4.1, 4.9, 4.95, -1.0, -0.05, 3.25, 1e9]
    yield (
        "glue",
        "stsb",
        {},
        [{"sentence1": ODD, "sentence2": "Two.", "label": score, "idx": n} for n, score in enumerate(scores)],
    )
    yield "superglue", "multirc", {"label_names": ["False", "True"]}, [
        {
            "paragraph": a, "question": b, "answer": "a<br>b </b>", "label": n % 2,
            "idx": {"paragraph": n, "question": 20 + n, "answer": 30 + n},
        }
        for n, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    yield "superglue", "wic", {"label_names": ["False", "True"]}, [
        {
            "word": "spring", "sentence1": "A spring in the clock.", "sentence2": "Spring came.", "label": 0, "idx": 1,
            "start1": 2, "end1": 8, "start2": 0, "end2": 6,
        }
    ]  # fmt: skip
    yield (
        "superglue",
        "axb",
        {"label_names": ["entailment", "not_entailment"]},
        [{"sentence1": a, "sentence2": b, "label": -1, "idx": n} for n, (a, b) in enumerate(pairs)],
    )
    passages = [
        'Mira built a kite.\n@highlight\nIt flew\n@highlight\nIt fell!\n@highlight\n"Why?"\n@highlight\nNobody knew',
        "\n@highlight\n\n@highlight\n.\n@highlight\n'\n@highlight\n@highlight\n",
        ODD + "\\\n@highlight\nend\n@highlight",
    ]
    yield "superglue", "record", {}, [
        {
            "passage": passage, "query": f"@placeholder built {n}.", "entities": entities, "answers": answers,
            "idx": {"passage": n, "query": n + 5},
        }
        for n, (passage, entities, answers) in enumerate(
            (p, e, a)
            for p in passages
            for e, a in ((["Mira", "kite"], ["Mira"]), (["A", "B, C", ""], ["A", "A", ""]), (["x"], []), ([], []))
        )
    ]  # fmt: skip
    yield "winograd", "wsc_simple", {}, list(wsc())
    yield "winograd", "wsc_simple", {"correct_referent_only": True, "label": "w"}, list(wsc())
    yield "winograd", "wsc_simple", {}, [{k: v for k, v in r.items() if k != "label"} for r in wsc()][:2]
    yield "winograd", "wsc", {}, list(wsc())
    sentences = [
        ("Ana thanked Bea because she helped, and she smiled.", "she"),
        ("She thanked Bea.", "She"),
        ("The cup hit the jug, so it. broke it, twice it", "it"),
        ("x it it it\u00a0it, it;", "it"),
        ("a b.c d", "b.c"),
        ("a b c d", "b|c"),
        ("no such word", "they"),
        ("ünï it\\ it.", "it"),
        ("a (b , c", "("),
    ]
    yield (
        "winograd",
        "definite_pronoun_resolution_simple",
        {},
        [
            {"sentence": sentence, "pronoun": pronoun, "candidates": ["Ana", "Bea \\1"], "label": n % 2}
            for n, (sentence, pronoun) in enumerate(sentences)
        ]
        + [{"sentence": "a it b", "pronoun": "it", "candidates": ["a", "b"], "label": n} for n in (-1, 2)],
    )
    yield (
        "winograd",
        "wnli_simple",
        {},
        [
            {"sentence1": premise, "sentence2": hypothesis, "label": n % 3 - 1, "idx": n}
            for n, (premise, hypothesis) in enumerate(wnli())
        ],
    )
    contexts = [
        ("The mill, built in 1802, stood by the river. It stood long.", ["1802", "in 1802"], "When was it built?"),
        ("one two three", ["two three"], "The last place is not looked at?"),
        ("one two three four", ["two three"], "Now it is"),
        ("one two three", ["three"], "?"),
        (ODD, ["vertical one\u00a0(no-break)"], ODD),
        ("a a a b", ["a b"], "Overlaps: " + ODD),
        ("x_y z é 文", ["é"], "x_y"),
        ("nothing here", ["absent"], "where"),
        ("U.S. dollars ($) in the U.S.!", ["U.S."], "(which)?"),
        ("a", [""], ""),
        ("a b", [""], ""),
        ("", ["a"], " "),
        ("no answers", [], "why"),
    ]
    squads = [
        {"id": f"q{n}", "title": "T", "context": c, "question": q, "answers": {"text": a, "answer_start": [0] * len(a)}}
        for n, (c, a, q) in enumerate(contexts)
    ]
    yield "squad", "squad", {}, squads
    yield "squad", "squad", {"include_context": False}, squads
    yield "squad", "squad_span_space_tokenized", {}, squads
    pages = [
        "The Grey Mill stands, since 1802 , in Upper-Dale.",
        "GREY  MILL\n(built 1802).",
        "Nothing.",
        "",
        ODD,
    ]
    yield "trivia", "trivia_qa", {}, [
        {
            "question": "Which mill, then?", "answer": {"normalized_aliases": aliases},
            "entity_pages": {"wiki_context": pages[:split]}, "search_results": {"search_context": pages[split:]},
        }
        for aliases in (["grey mill", "1802", "mill"], ["É", "é", "a.b", "upper-dale"], ["("], ["[x]", "a|c", "$5"], [])
        for split in (0, 2, 5)
    ] + [
        {"question": ODD, "answer": {"normalized_aliases": ["mill", ""]}, "search_results": {"search_context": pages}}
    ]  # fmt: skip
    questions = ["Who said 'Hello' and 'Good BYE'?", "'A\nline' 'b'", ODD, "ÀB''c'", "it's", ""]
    yield "trivia", "trivia_question", {}, [{"question": q, "answer": a} for q in questions for a in questions[::2]]
    yield "trivia", "trivia_question", {}, [{"question": "Who?", "answer": {"value": "'ME'", "aliases": ["I"]}}]
    for languages in (("en", "de"), ("ro", "fr"), ("zh-cn", "sw")):
        arguments = dict(zip(("source_language", "target_language"), languages))
        pairs_of_languages = [dict(zip(languages, pair)) for pair in pairs]
        yield "translation", "translate", arguments, pairs_of_languages
        others = [["xx", languages[1], languages[0]], [languages[0], "xx", "yy"], [*languages, languages[0]]]
        yield (
            "translation",
            "multi_translate",
            arguments,
            [
                {"translations": {"language": codes, "translation": [f"{code} {ODD}" for code in codes]}}
                for codes in others
            ],
        )
    yield (
        "summarization",
        "summarize",
        {"article_key": "article", "summary_key": "highlights"},
        [{"article": a, "highlights": b, "id": "x"} for a, b in pairs],
    )
    documents = [
        "One. Two! Three?? Four",
        "Line one. Still one.\n\n Line two?!? Yes. ... no\nalone\n.!?",
        "日本語テキスト。タイ ภาษาไทย mixed\u3000wide\vx  y",
        "a.b.c\t.\r\nd . \x0b e.",
        ODD,
        "",
    ]
    yield "plain_text", "lm", {}, [{"text": text} for text in documents]
    yield "plain_text", "pad_nonspaced_languages", {}, [{"text": text, "id": 3} for text in documents]
    for reuse in (True, False):
        yield "plain_text", "neighboring_pairs", {"reuse_sentences": reuse}, [{"text": text} for text in documents]
    formats = {"inputs_formats": "{a} or {deep/er}?", "targets_formats": ["{a}!", "No: {b} {deep/er}"]}
    ranked = [
        {"position": 0, "a": a, "b": b, "deep": {"er": "D{b}"}, "label": label, "weight": 0.5}
        for a, b in [("x", "y"), ("{b}", ODD), ("\\0\\\\", "a\\1"), ("\\é", "b\\")]
        for label in (0, 1, 5)
    ]
    for mode in ("train", "eval"):
        yield "ranking", "rank_classification_formatter", formats | {"mode": mode}, ranked
    # Lists of formats for both stop T5 with a NameError.
    formats = {"weight_key": "weight", "inputs_formats": ["1 {a}", "2"], "targets_formats": "{b}"}
    yield "ranking", "rank_classification_formatter", formats, [r | {"label": [0, 1]} for r in ranked[:2]]
    lines = ["a\tb", 'q "u\t"o"te"', "\t", "a\t", "one", "", "a\tb\tc", "é \t文"]
    yield "tsv", "parse_tsv", {}, lines
    yield "tsv", "parse_tsv", {"field_names": ["x", "y"], "field_columns": [0, 2]}, lines
    yield "tsv", "preprocess_tsv", {"inputs_format": "{1}: {0} {x} {{0}}", "targets_format": "{1}{1}"}, lines
    named = {"field_names": ["k", "v", "w"], "inputs_format": "{v} {0} {k}", "targets_format": "no field"}
    yield "tsv", "preprocess_tsv", named, lines
    yield "tsv", "preprocess_tsv", named | {"field_delim": ","}, ["1,2,3", "1,2", ",,"]


def wsc():
    """Records of WSC, some of which are wrong."""
    rows = [
        ("The crate would not go in the van because it was too long .", "it", 8, "The crate", 0),
        ("The crate would not go in the van because it was too long .", "it", 9, "the van", 6),
        ("Ana saw X and X saw her mark X .", "her", 6, "Ana", 0),
        ("a\u00a0b it. c it", "it", 2, "a", 0),
        ("a it. b", "it.", 1, "a", 0),
        ("It is first", "It", 0, "x", 2),
        ("the last is it", "it", 3, "the last", 0),
        ("the last is it", "it", 4, "the last", 0),
        ("two  spaces it  here", "it", 3, "two", 0),
        ("a \\0 b", "\\0", 1, "a", 0),
        ("a \\1 b", "\\1", 1, "a", 0),
        ("a x\\y b", "x\\y", 1, "a", 0),
        ("a X b \\\\ c", "\\\\", 3, "a", 0),
    ]
    for n, (text, pronoun, place, phrase, start) in enumerate(rows):
        yield {
            "text": text, "span1_text": phrase, "span1_index": start, "span2_text": pronoun, "span2_index": place,
            "label": (1, 0, -1)[n % 3], "idx": n,
        }  # fmt: skip


def wnli():
    """Premises and hypotheses."""
    yield "The dog chased the cat until it hid.", "The cat hid."
    yield "The dog chased the cat until it hid.", "The dog chased the cat until the cat hid."
    yield "Ana gave Bea a coat, since she was cold.", "Bea was cold."
    yield "The boys met the girls, and their coach cheered.", "The girls' coach cheered."
    yield "Tom took the bicycle; the bell of it rang, and his hat fell.", "The bell of the bicycle rang."
    yield "Sam met Kim. The house was his.", "The house was Sam's."
    yield "Sam met Kim. Kim hit him!", "Kim hit Sam"
    yield "He ran. He, he and they.", "nothing shared"
    yield "It was late, it was cold", "The evening was late, the evening was cold"
    yield "The oak fell on a shed; it broke.", "A storm took the oak and a shed broke."
    yield "No one here", "No one there"
    yield "Two  spaces before it broke", "the jar broke"
    yield " it broke", "the jar broke"
    yield "A jug (old, it broke", "A jug (old, the jug broke"
    yield "The ÉTÉ was long. It ended?", "The Été ended"
    yield "He said it. She left", "Bob said it"
    yield "", ""


def main():
    made = []
    for module, function, arguments, records in cases():
        preprocessor = functools.partial(OURS.get(function) or getattr(preprocessors, function), **arguments)
        made.append({
            "module": module, "function": function, "arguments": arguments, "records": records,
            "examples": [examples(preprocessor, record) for record in records],
        })  # fmt: skip
    text = json.dumps(made, ensure_ascii=False, indent=0)
    (HERE / "t5_examples.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
