"""Small invented data sets in the layout and the formats of the public ones, with what is awkward in them."""

import gzip
import json
from pathlib import Path

AWKWARD = 'Straße „x" — \'s\u2028\x85 &amp; <unk> "one quote'


def write(folder: Path) -> Path:
    """Writes every data set below a folder, as its archives unpack."""
    _glue(folder)
    _superglue(folder)
    _winograd(folder)
    _questions(folder)
    _summaries(folder)
    _translations(folder)
    _c4(folder)
    return folder


def put(path: Path, *lines: str, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + end for line in lines).encode("utf-8")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _glue(folder: Path) -> None:
    def table(name: str, columns: str, *rows: str) -> None:
        put(folder / name, *(row.replace("|", "\t") for row in ([columns] if columns else []) + list(rows)))

    for stem in ("train", "dev"):
        table(f"CoLA/{stem}.tsv", "", f"gj04|1||{AWKWARD}", 'gj04|0|*|"Quoted" they', "bc01|1|| spaces at both ends ")
    table("CoLA/test.tsv", "index|sentence", f"0|{AWKWARD}", "1|Bill whistled")
    for stem in ("train", "dev"):
        table(f"SST-2/{stem}.tsv", "sentence|label", "hide new secretions |0", 'a "fine film|1', "|1")
    table("SST-2/test.tsv", "index|sentence", "0|uneasy mishmash", "1|by the end")

    header = "Quality|#1 ID|#2 ID|#1 String|#2 String"
    rows = [f'{k % 2}|70{k}|80{k}|He said, "{k}.|{AWKWARD} {k}' for k in range(6)]
    path = folder / "MRPC/msr_paraphrase_train.txt"
    put(path, *(row.replace("|", "\t") for row in (header, *rows)), end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    put(folder / "MRPC/dev_ids.tsv", "701\t801", "704\t804")
    path = folder / "MRPC/msr_paraphrase_test.txt"
    put(path, *(row.replace("|", "\t") for row in (header, *rows[:2])), end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    for stem in ("train", "dev"):
        table(
            f"QQP/{stem}.tsv", "id|qid1|qid2|question1|question2|is_duplicate",
            "1|2|3|How?|Why?|0", "4|5|6|Cut in", "two?|What?|1", f'7|8|9|{AWKWARD}|"How|1', "1|2|3|No|label|",
        )  # fmt: skip
    table("QQP/test.tsv", "id|question1|question2", "0|Would|Could", f"1|{AWKWARD}|Who")
    columns = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
    for stem in ("train", "dev"):
        table(
            f"STS-B/{stem}.tsv", f"{columns}|score",
            "0|main|MSRvid|2012|1|none|none|A plane.|An air plane.|5.000", f"1|a|b|c|2|d|e|{AWKWARD}|B|0.333",
        )  # fmt: skip
    table("STS-B/test.tsv", columns, "0|main|MSRvid|2012|1|none|none|A girl.|A boy.")
    columns = "index|promptID|pairID|genre|sentence1_binary_parse|sentence1|sentence2"
    for stem in ("train", "dev_matched", "dev_mismatched"):
        table(
            f"MNLI/{stem}.tsv", f"{columns}|label1|gold_label", f"0|1|2|fiction|( x )|{stem} a|{AWKWARD}|x|neutral",
            "1|1|2|fiction|( x )|b|c|neutral|contradiction", "2|1|2|fiction|( x )|d|e|neutral|entailment",
        )  # fmt: skip
    for stem in ("test_matched", "test_mismatched"):
        table(f"MNLI/{stem}.tsv", columns, f"0|1|2|fiction|( x )|{stem}|{AWKWARD}")
    for stem in ("train", "dev"):
        table(
            f"QNLI/{stem}.tsv", "index|question|sentence|label", f"0|Q?|{AWKWARD}|entailment", "1|R?|S|not_entailment"
        )
        for name, labels in (("RTE", ("entailment", "not_entailment")), ("WNLI", ("0", "1"))):
            rows = (f"0|One|{AWKWARD}|{labels[0]}", f"1|Two|Three|{labels[1]}")
            table(f"{name}/{stem}.tsv", "index|sentence1|sentence2|label", *rows)
    table("QNLI/test.tsv", "index|question|sentence", "0|Q?|T")
    for name in ("RTE", "WNLI"):
        table(f"{name}/test.tsv", "index|sentence1|sentence2", "0|One|Two", "1|Three|Four")
    table("AX/AX.tsv", "index|sentence1|sentence2", "0|The cat sat.|The cat did not sit.", f"1|{AWKWARD}|B")


def objects(path: Path, *rows: dict) -> None:
    put(path, *(json.dumps(row, ensure_ascii=len(str(row)) % 2 == 0) for row in rows))


def _superglue(folder: Path) -> None:
    def task(name: str, *rows: dict, secret: str = "label") -> None:
        objects(folder / name / "train.jsonl", *rows)
        objects(folder / name / "val.jsonl", *rows[::-1])
        objects(folder / name / "test.jsonl", *({k: v for k, v in row.items() if k != secret} for row in rows))

    task(
        "BoolQ", {"question": "is it", "passage": AWKWARD, "idx": 0, "label": True},
        {"question": "was it", "passage": "no", "idx": 1, "label": False},
    )  # fmt: skip
    labels = ("entailment", "contradiction", "neutral")
    task("CB", *({"premise": f"p{k}", "hypothesis": AWKWARD, "label": x, "idx": k} for k, x in enumerate(labels)))
    copa = {"premise": "My body cast a shadow.", "choice1": "The sun.", "choice2": AWKWARD, "question": "cause"}
    task("COPA", {**copa, "label": 0, "idx": 0}, {**copa, "question": "effect", "label": 1, "idx": 7})
    task(
        "RTE",
        *({"premise": AWKWARD, "hypothesis": "h", "label": x, "idx": len(x)} for x in ("entailment", "not_entailment")),
    )
    spans = {"start1": 0, "end1": 4, "start2": 3, "end2": 9, "version": 1.1}
    wic = {"word": "place", "sentence1": AWKWARD, "sentence2": "a place", **spans}
    task("WiC", {**wic, "idx": 0, "label": False}, {**wic, "idx": 1, "label": True})

    def wsc(text, first, index, second, other, idx):
        spans = {"span1_text": first, "span1_index": index, "span2_text": second, "span2_index": other}
        return {"text": text, "target": spans, "idx": idx, "label": idx % 2 == 0}

    task(
        "WSC",
        wsc("Mark told Pete many lies about himself.", "Mark", 0, "himself", 6, 0),
        wsc("The cat sat because it was tired .", "the cat.", 0, "It", 4, 1),
        wsc("Two old men and they scold .", "two\nold men", 0, "they", 4, 2),
        wsc("They argued: Kamenev was, and Zinoviev, too", "Kamenev and Zinoviev", 2, "They", 0, 3),
    )

    questions = [
        {"question": AWKWARD, "idx": 5, "answers": [
            {"text": "yes", "idx": 8, "label": 1}, {"text": "no", "idx": 9, "label": 0}]},
        {"question": "Why?", "idx": 6, "answers": [{"text": "so", "idx": 10, "label": 1}]},
    ]  # fmt: skip
    multirc = {"idx": 2, "version": 1.1, "passage": {"text": "<b>Sent 1: </b>It.<br>", "questions": questions}}
    for stem in ("train", "val"):
        objects(folder / f"MultiRC/{stem}.jsonl", multirc, {**multirc, "idx": 3})
    for question in questions:
        for answer in question["answers"]:
            del answer["label"]
    objects(folder / "MultiRC/test.jsonl", multirc)

    passage = {"text": "Ärzte in Rome saw Rome\n@highlight\nRome", "entities": [
        {"start": 9, "end": 12}, {"start": 18, "end": 21}, {"start": 0, "end": 4}]}  # fmt: skip
    queries = [
        {"query": "@placeholder saw", "idx": 11, "answers": [
            {"start": 9, "end": 12, "text": "Rome"}, {"start": 18, "end": 21, "text": "Rome"}]},
        {"query": f"{AWKWARD} @placeholder", "idx": 12, "answers": [
            {"start": 0, "end": 4, "text": "Ärzte"}, {"start": 9, "end": 12, "text": "Rome"}]},
    ]  # fmt: skip
    record = {"source": "Daily mail", "passage": passage, "qas": queries, "idx": 4}
    for stem in ("train", "val"):
        objects(folder / f"ReCoRD/{stem}.jsonl", record, {**record, "idx": 5, "qas": [{**queries[0], "idx": 14}]})
    objects(folder / "ReCoRD/test.jsonl", {**record, "qas": [{"query": "no @placeholder", "idx": 13}]})

    for name, one, two in (("AX-b", "sentence1", "sentence2"), ("AX-g", "premise", "hypothesis")):
        labels = enumerate(("entailment", "not_entailment"))
        objects(folder / f"{name}/{name}.jsonl", *({one: AWKWARD, two: "b", "label": x, "idx": k} for k, x in labels))


def _winograd(folder: Path) -> None:
    block = ("The bee landed on the flower because it had pollen.", "it", "The bee,the flower", "the flower", "")
    other = (f" {AWKWARD} ", "it ", "Straße, „x", "Straße", "")
    for stem in ("train", "test"):
        put(folder / f"definite_pronoun_resolution/{stem}.c.txt", *block, *other, *block[:4])


def article(k: int, secret: bool = False, documents: bool = True) -> dict:
    answer = {
        "Aliases": [" David Seville ", AWKWARD], "MatchedWikiEntityName": "x", "NormalizedAliases": ["david seville"],
        "NormalizedValue": "david seville", "Type": "WikipediaEntity", "Value": " David Seville",
    }  # fmt: skip
    if k % 2:
        answer |= {"MatchedWikiEntryName": " David ", "NormalizedMatchedWikiEntryName": "david"}
    page = {"DocSource": "TagMe", "Filename": f"Page{k}.txt", "Title": f"Page {k} "}
    result = {"Description": " d", "Filename": f"{k}/{k}.txt", "Rank": k, "Title": AWKWARD, "Url": "http://x"}
    found = {"EntityPages": [page, {"Title": "nothing"}, {**page, "Filename": "gone.txt"}], "SearchResults": [result]}
    return {
        **({} if secret else {"Answer": answer}),
        **(found if documents else {}),
        "Question": f" Who was {k}? ", "QuestionId": f"tc_{k}", "QuestionSource": "http://www.triviacountry.com/ ",
    }  # fmt: skip


def trivia(path: Path, *articles: dict) -> None:
    """Indented as published: TFDS takes articles apart by the white space before them."""
    put(path, json.dumps({"Data": articles, "Domain": "Web", "Version": 1.0}, indent=4))


def _questions(folder: Path) -> None:
    def squad(title):
        def question(k, *answers):
            answers = [{"text": text, "answer_start": start} for text, start in answers]
            return {"id": f"56d{k}", "question": f"{AWKWARD} {k}?", "answers": answers}

        paragraphs = [
            {"context": f"{AWKWARD} is\n here", "qas": [question(0, ("here", 4), ("is", 2)), question(1, ("is", 2))]},
            {"context": "Elsewhere.", "qas": [question(2), question(0, ("Else", 0))]},
        ]
        return {"version": "1.1", "data": [{"title": title, "paragraphs": paragraphs}]}

    for stem in ("train", "dev"):
        put(folder / f"squad/{stem}-v1.1.json", json.dumps(squad(f"{stem}_Title")))

    for domain in ("web", "wikipedia"):
        trivia(folder / f"triviaqa-rc/qa/{domain}-train.json", *(article(k) for k in range(3)))
        trivia(folder / f"triviaqa-rc/qa/{domain}-dev.json", article(3), article(4, documents=False))
        trivia(folder / f"triviaqa-rc/qa/{domain}-test-without-answers.json", article(5, secret=True))
    trivia(folder / "triviaqa-rc/qa/verified-web-dev.json", article(6))
    for k in range(7):
        put(folder / f"triviaqa-rc/evidence/wikipedia/Page{k}.txt", f"Page {k} of {AWKWARD}", "")
        put(folder / f"triviaqa-rc/evidence/web/{k}/{k}.txt", f" Result {k}")
    unfiltered = folder / "triviaqa-unfiltered"
    trivia(unfiltered / "unfiltered-web-train.json", *(article(k) for k in range(4)))
    trivia(unfiltered / "unfiltered-web-dev.json", article(4))
    trivia(unfiltered / "unfiltered-web-test-without-answers.json", article(5, secret=True))

    for stem in ("train", "dev"):
        rows = ({"question": AWKWARD, "answer": ["a", AWKWARD]}, {"question": "who", "answer": ["x"]})
        objects(folder / f"nq_open/NQ-open.{stem}.jsonl", *rows)
    one, two = {"start_token": 1, "end_token": 3}, {"start_token": 0, "end_token": 1}
    rows = [
        {"question_text": "who is it", "annotations": [{"short_answers": answers}], "document_text": "The Big Bird ."}
        for answers in ([one], [one, two], [])
    ]
    objects(folder / "natural_questions/v1.0-simplified_simplified-nq-train.jsonl", *rows)
    tokens = [{"token": token, "html_token": False} for token in ("It", "``", "he", "''")]
    rows = [{"question_text": "who", "annotations": [{"short_answers": [one]}], "document_tokens": tokens}]
    objects(folder / "natural_questions/nq-dev-00.jsonl", *rows)


def _summaries(folder: Path) -> None:
    for stem in ("train", "validation", "test"):
        rows = [{"article": f"{AWKWARD} {k}", "highlights": f"a\nb {k}", "id": f"{k}"} for k in range(3)]
        objects(folder / f"cnn_dailymail/{stem}.jsonl.gz", *rows)
        objects(folder / f"xsum/{stem}.jsonl", *({"document": f"{stem} {k}", "summary": "s"} for k in range(3)))


def sgml(path: Path, *sentences: str) -> None:
    segments = (f'<seg id="{k}">{sentence}</seg>' for k, sentence in enumerate(sentences, start=1))
    put(path, '<refset setid="x">', '<doc sysid="ref">', "<p>", *segments, "</p>", "</doc>", "</refset>")


def _translations(folder: Path) -> None:
    def pairs(name: str, one: str, two: str, end: str = "", marks: str = "") -> None:
        rows = [(f"{name} {AWKWARD} {k}", f"{name} {k}\tEnglish") for k in range(4)]
        rows += [("", "alone"), ("alone", ""), (f"a{marks}b ", " c"), ("d", f"e{marks}")]
        for language, column in ((one, 0), (two, 1)):
            put(folder / f"{name}.{language}{end}", *(row[column] for row in rows))

    pairs("wmt14/training/europarl-v7.de-en", "de", "en")
    pairs("wmt14/commoncrawl.de-en", "de", "en", marks="\r")
    pairs("wmt14/training/news-commentary-v9.de-en", "de", "en", marks="\x0b")
    pairs("wmt14/dev/newstest2013", "de", "en")
    for name in ("europarl-v7", "news-commentary-v10"):
        pairs(f"wmt15/training/{name}.fr-en" if name == "europarl-v7" else f"wmt15/{name}.fr-en", "fr", "en")
    pairs("wmt15/commoncrawl.fr-en", "fr", "en")
    pairs("wmt15/un/undoc.2000.fr-en", "fr", "en")
    pairs("wmt15/giga-fren.release2.fixed", "fr", "en", ".gz")
    for year, stem, one in (
        ("wmt14", "newstest2014", "de"), ("wmt15", "newstest2014", "fr"), ("wmt15", "newsdiscussdev2015", "fr"),
        ("wmt15", "newsdiscusstest2015", "fr"), ("wmt16", "newsdev2016", "ro"), ("wmt16", "newstest2016", "ro"),
        ("wmt19", "newstest2018", "de"),
    ):  # fmt: skip
        sgml(folder / f"{year}/dev/{stem}-{one}en-src.{one}.sgm", f"{stem} {AWKWARD}", "zwei", "")
        sgml(folder / f"{year}/dev/{stem}-{one}en-ref.en.sgm", "one &quot;", "two", "three")
    pairs("wmt_t2t/training/europarl-v7.de-en", "de", "en")
    pairs("wmt_t2t/commoncrawl.de-en", "de", "en")
    pairs("wmt_t2t/training-parallel-nc-v13/news-commentary-v13.de-en", "de", "en")
    pairs("wmt_t2t/dev/newstest2013", "de", "en")
    for language in ("de", "en"):
        put(folder / f"wmt_t2t/newstest2014.{language}", "one", "two")
    pairs("wmt16/train.ro-en", "ro", "en")
    put(folder / "wmt19/europarl-v9.de-en.tsv.gz", "eins\tone", "three\tcolumns\there", f"{AWKWARD}\t x ", "\t")
    put(folder / "wmt19/en-de.bicleaner07.txt", "the English\tdas Deutsche")
    pairs("wmt19/commoncrawl.de-en", "de", "en")
    put(folder / "wmt19/news-commentary-v14.de-en.tsv.gz", "zwei\ttwo")
    put(folder / "wmt19/wikititles-v1.de-en.tsv.gz", "Titel\tTitle")
    pairs("wmt19/rapid2019.de-en", "de", "en")


def _c4(folder: Path) -> None:
    for language in ("de", "bg-Latn"):
        for part, count in (("", 3), ("-validation", 1)):
            for shard in range(count):
                name = f"c4-{language}{part}.tfrecord-{shard:05}-of-{count:05}.json.gz"
                rows = ({"text": f"{AWKWARD} {language} {shard} {k}", "timestamp": "t", "url": "u"} for k in range(5))
                objects(folder / "multilingual" / name, *rows)
