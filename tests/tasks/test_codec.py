"""The codec: bytes and sentinels as span corruption makes them."""

import re

import pytest

from t5x_lite.tasks import codec
from tests.tasks.test_documents import write

registry = pytest.importorskip("t5x_lite.tasks.registry")


def pairs(folder, text, lengths):
    """Inputs and targets of `text_span_corruption` over bytes, without the end token, padded."""
    glob = write(folder / "a.jsonl", [f"{i} {text}" * 40 for i in range(20)])
    task = registry.prepare("text_span_corruption", None, "bytes", glob, glob)
    examples = list(task.get_dataset(lengths, seed=0, num_epochs=1, shuffle=False).as_numpy_iterator())
    assert examples
    for example in examples:
        yield [ids[:-1].tolist() + [0, 0] for ids in (example["inputs"], example["targets"])]


def numbers(text):
    return [int(number) for number in re.findall(r"<extra_id_(\d+)>", text)]


@pytest.mark.parametrize("lengths", [{"inputs": 64, "targets": 16}, {"inputs": 512, "targets": 114}])
def test_span_corrupted_bytes_are_read_and_written_as_they_were_trained(tmp_path, lengths):
    bytes_codec = codec.load("bytes")
    for inputs, targets in pairs(tmp_path, "Plain text.", lengths):
        for ids in (inputs, targets):
            assert bytes_codec.encode(bytes_codec.decode(ids)) == ids[:-2]
        spans = numbers(bytes_codec.decode(inputs))
        assert spans == numbers(bytes_codec.decode(targets)) == list(range(len(spans))) and spans
        assert [i for i in targets if i > 258 - len(spans)] == [258 - k for k in spans]


def test_sentinels_are_found_between_characters_of_several_bytes(tmp_path):
    bytes_codec = codec.load("bytes")
    most = 0
    for inputs, targets in pairs(tmp_path, "Grüße, 文字 — „Ünïcode“ 🙂.", {"inputs": 200, "targets": 60}):
        spans = numbers(bytes_codec.decode(inputs))
        assert spans == numbers(bytes_codec.decode(targets)) == list(range(len(spans)))
        most = max(most, len(spans))
    assert most == 11


def test_text_is_its_bytes():
    bytes_codec = codec.load("bytes")
    text = "Ünïcode 文字 🙂 <extra_id_100> <extra_id_x> <extra_id_01>"
    assert bytes_codec.encode(text) == [byte + 3 for byte in text.encode()]
    assert bytes_codec.decode(bytes_codec.encode(text)) == text
    # A character that a span has cut in two is no sentinel.
    assert bytes_codec.decode([*bytes_codec.encode("é")[:1], *bytes_codec.encode("a"), 1, 2, 300]) == "a"
