"""The formats by hand, beside what references/t5_examples.json holds: the examples of the paper's kinds, and errors."""

import hashlib
import re
import warnings

import pytest

from t5x_lite.tasks.formats import (
    glue,
    plain_text,
    ranking,
    squad,
    summarization,
    superglue,
    translation,
    trivia,
    tsv,
    winograd,
)


def test_glue_names_texts_in_alphabetical_order():
    record = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 4, "label": 0}
    assert glue.glue(record, benchmark_name="mnli", label_names=("entailment", "neutral", "contradiction")) == {
        "inputs": "mnli hypothesis: It is wet. premise: It rains.",
        "targets": "entailment",
        "idx": 4,
    }


def test_a_label_without_a_name_is_said():
    with pytest.raises(ValueError, match="its label is 2, and labels are 0 to 1, or -1"):
        glue.glue({"s": "", "label": 2, "idx": 0}, benchmark_name="x", label_names=("a", "b"))


@pytest.mark.parametrize(
    "score, expected",
    [(3.8, "3.8"), (2.5, "2.4"), (0.5, "0.4"), (0.7, "0.8"), (0.1, "0.0"), (0.3, "0.4"), (-0.05, "-0.0"), (5, "5.0")],
)
def test_similarity_is_rounded_half_to_even(score, expected):
    made = glue.stsb({"sentence1": "a", "sentence2": "b", "label": score, "idx": 1})
    assert made == {"inputs": "stsb sentence1: a sentence2: b", "targets": expected, "idx": 1}


def test_record_gives_an_example_for_each_answer():
    passage = 'The owl woke.\n@highlight\nIt was "late"\n@highlight\nDark'
    record = {
        "passage": passage, "query": "@placeholder woke", "entities": ["Owl", "Fox"], "answers": ["Owl", "Fox"],
        "idx": {"passage": 1, "query": 2},
    }  # fmt: skip
    made = superglue.record(record)
    text = 'record query: @placeholder woke entities: Owl, Fox passage: The owl woke. It was "late" Dark'
    shared = {"inputs": text, "answers": ["Owl", "Fox"], "idx/passage": 1, "idx/query": 2}
    assert made == [shared | {"targets": "Owl"}, shared | {"targets": "Fox"}]
    assert [e["targets"] for e in superglue.record(record | {"answers": []})] == ["<unk>"]


def wsc(text, place, pronoun="it", **others):
    return {"text": text, "span1_text": "the jar", "span2_text": pronoun, "span2_index": place, "idx": 0} | others


def test_wsc_for_training_leaves_out_wrong_phrases():
    record = wsc("Kim dropped the jar and it broke.", 5)
    assert winograd.wsc_simple(record | {"label": 0}, correct_referent_only=True) is None
    assert winograd.wsc_simple(record | {"label": 1}, correct_referent_only=True) == {
        "inputs": "wsc: Kim dropped the jar and *it* broke.", "targets": "the jar", "label": 1, "idx": 0,
    }  # fmt: skip


def test_wsc_says_where_the_pronoun_should_be():
    with pytest.raises(ValueError, match="its word 4 is 'and', not its span2_text 'it'"):
        winograd.wsc_simple(wsc("Kim dropped the jar and it broke.", 4))
    for place in (-1, 0, 7):
        with pytest.raises(ValueError, match=f"its span2_index is {place}, and can be 1 to 6"):
            winograd.wsc_simple(wsc("Kim dropped the jar and it broke.", place))


def test_texts_of_wsc_whose_index_is_wrong(monkeypatch):
    text = 'We said "good for it," again '
    monkeypatch.setitem(winograd._MISPLACED, hashlib.sha256(text.encode()).hexdigest(), (' it,"', ' X ,"'))
    assert winograd.wsc_simple(wsc(text, 1))["inputs"] == 'wsc: We said "good for *it* ," again'


def test_the_first_pronoun_of_dpr_is_marked():
    record = {"sentence": "Lea saw that it, if it is red.", "pronoun": "it", "candidates": ["Lea", "art"], "label": 1}
    made = winograd.definite_pronoun_resolution_simple(record)
    assert made == {"inputs": "wsc: Lea saw that *it*, if it is red.", "targets": "art"}


@pytest.mark.parametrize(
    "premise, hypothesis, inputs, targets",
    [
        ("The pan met the lid. It bent.", "The lid bent.", "The pan met the lid. *It* bent.", "The lid"),
        ("Lou met Jo at his house.", "Lou met Jo at Jo's house.", "Lou met Jo at *his* house.", "Jo"),
        ("A fork lay by it.", "A fork lay by the Plate.", "A fork lay by *it* .", "the Plate"),
    ],
)
def test_wnli_becomes_wsc(premise, hypothesis, inputs, targets):
    made = winograd.wnli_simple({"sentence1": premise, "sentence2": hypothesis, "label": 1, "idx": 9})
    assert made == {
        "inputs": f"wsc: {inputs}", "targets": targets, "premise": premise, "hypothesis": hypothesis, "label": 1,
        "idx": 9,
    }  # fmt: skip


def test_wnli_without_a_pronoun_is_said():
    with pytest.raises(ValueError, match="has no pronoun"):
        winograd.wnli_simple({"sentence1": "No one.", "sentence2": "Someone.", "idx": 0})


def question(context, *answers):
    return {"id": "q", "question": "Who (then)?", "context": context, "answers": {"text": [*answers]}}


def test_squad_keeps_the_spaces_of_padding():
    made = squad.squad(question("Ida, of Rye.", "Ida,", "Ida"))
    assert made["inputs"] == "question: Who ( then ) ? context: Ida , of Rye . "
    assert made["targets"] == "Ida , " and made["answers"] == ["Ida , ", "Ida"]
    alone = squad.squad(question("Ida, of Rye.", "Ida"), include_context=False)
    assert alone["inputs"] == "squad trivia question: Who ( then ) ? " and alone["context"] == "Ida , of Rye . "
    with pytest.raises(ValueError, match="the list of its answers is empty"):
        squad.squad(question("Ida"))


def test_spans_of_squad_are_places_of_words():
    assert squad.squad_span_space_tokenized(question("so Ida is", "Ida"))["targets"] == "start: 1 end: 1"
    assert squad.squad_span_space_tokenized(question("so is Ida", "Ida")) is None
    assert squad.squad_span_space_tokenized(question("so it is", "Ida")) is None


def test_trivia_looks_for_each_alias_in_each_document():
    record = {
        "question": "Who?", "answer": {"normalized_aliases": ["ida", "of rye", "tom"]},
        "entity_pages": {"wiki_context": ["IDA of Rye", "Nobody"]}, "search_results": {"search_context": ["ida"]},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [(e["inputs"], e["targets"]) for e in trivia.trivia_qa(record)]
    first, last = "question: Who ? context: IDA of Rye", "question: Who ? context: ida"
    assert made == [(first, "ida"), (first, "of rye"), (last, "ida")]


def test_questions_without_context():
    assert trivia.trivia_question({"question": "Who sang 'Ti Amo'?", "answer": {"value": "É IDA"}}) == {
        "inputs": "trivia question: who sang ti amo?",
        "targets": "É ida",
    }


def test_natural_questions_keep_those_with_one_short_answer():
    tokens = "It cost ( about ) 5 % , said Ida 's `` paper '' .".split()
    line = {
        "question_text": "what did it cost",
        "annotations": [{"short_answers": [{"start_token": 2, "end_token": len(tokens)}]}, {"short_answers": []}],
    }
    expected = {"question": "what did it cost?", "answer": '(about) 5%, said Ida\'s "paper".'}
    assert trivia.natural_question(line | {"document_text": " ".join(tokens)}) == expected
    assert trivia.natural_question(line | {"document_tokens": [{"token": t} for t in tokens]}) == expected
    for count in (0, 2):
        several = [{"short_answers": line["annotations"][0]["short_answers"] * count}]
        assert trivia.natural_question(line | {"document_text": "", "annotations": several}) is None


def test_translation_names_languages_in_english():
    record = {"ro": "Bună.", "en": "Hello."}
    assert translation.translate(record, source_language="en", target_language="ro") == {
        "inputs": "translate English to Romanian: Hello.",
        "targets": "Bună.",
    }


def test_summaries():
    record = {"article": "Long.", "highlights": "Short.", "id": "1"}
    made = summarization.summarize(record, article_key="article", summary_key="highlights")
    assert made == {"inputs": "summarize: Long.", "targets": "Short."}


def test_ranking_gives_an_example_for_each_answer():
    record = {"position": 3, "a": "x", "label": [1, 2], "w": 0.25}
    formats = {"inputs_formats": ["1", "2 {a}", "3"], "targets_formats": ["one", "two", "three"]}
    made = ranking.rank_classification_formatter(record, **formats, weight_key="w", mode="train")
    assert made == [
        {"idx": [3, 1], "inputs": "2 x", "targets": "two", "is_correct": True, "weight": 0.25},
        {"idx": [3, 2], "inputs": "3", "targets": "three", "is_correct": True, "weight": 0.25},
    ]


def test_all_answers_of_a_record_in_one_example():
    record = {"position": 2, "a": "x", "label": 1, "w": 0.5}
    formats = {"inputs_formats": "in {a}", "targets_formats": ["one", "two"], "weight_key": "w"}
    assert ranking.rank_classification_formatter(record, **formats, mode="fewshot_eval") == [
        {
            "idx": [[2, 0], [2, 1]], "inputs": ["in x", "in x"], "targets": ["one", "two"],
            "is_correct": [False, True], "weight": [0.5, 0.5],
        }
    ]  # fmt: skip


def test_lengths_of_texts_are_bytes():
    for text, kept in (("", False), ("é", True), ("éa", True), ("éé", False)):
        record = {"targets": text, "more": 1}
        made = plain_text.filter_by_string_length(record, min_length=1, max_length=3)
        assert made == (record if kept else None)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inputs_formats": "a", "targets_formats": "b"}, "give a list of formats"),
        ({"inputs_formats": ["a"], "targets_formats": ["b", "c"]}, "give a list of formats"),
        ({"inputs_formats": "{b}", "targets_formats": ["b", "c"]}, "it has no text 'b'"),
        ({"inputs_formats": "{label}", "targets_formats": ["b", "c"]}, "it has no text 'label'"),
        ({"inputs_formats": "a", "targets_formats": ["b"], "mode": "test"}, "the mode 'test' is not one of train"),
    ],
)
def test_what_cannot_be_ranked_is_said(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ranking.rank_classification_formatter({"position": 0, "a": "x", "label": 0}, **arguments)


def test_features_passed_through_a_ranking():
    functions = {
        "inputs_fn": lambda r: ["a", "b"],
        "targets_fn": lambda r: ["c", "d"],
        "is_correct_fn": lambda r: [0, 1],
    }
    record = {"position": 0, "key": [1, 2], "idx": 5}
    made = ranking.rank_classification(record, **functions, passthrough_feature_keys=["key"])
    assert [example["key"] for example in made] == [[1, 2], [1, 2]]
    with pytest.raises(ValueError, match="'idx' cannot be passed through"):
        ranking.rank_classification(record, **functions, passthrough_feature_keys=["idx"])
    with pytest.raises(ValueError, match="its answers differ in number"):
        ranking.rank_classification(record, **functions | {"is_correct_fn": lambda r: [1]})


def test_lines_of_fields():
    assert tsv.preprocess_tsv("6,7,42", field_delim=",", num_fields=3, inputs_format="{2} / {1}") == {
        "inputs": "42 / 7",
        "targets": "7",
    }
    with pytest.raises(ValueError, match="there is no field 2 in the line"):
        tsv.preprocess_tsv("a\tb", targets_format="{2}")
    with pytest.raises(ValueError, match="has 1 fields, not 2"):
        tsv.parse_tsv("a")
