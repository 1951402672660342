"""The objectives: pairs are undone into the text they were made of, and fill their rows."""

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import corruption, denoising, masks
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.named import OBJECTIVES
from t5x_lite.tasks.objectives.ragged import ragged, split
from t5x_lite.tasks.objectives.segments import chopped, chopped_at_random, chunks, run_together

EOS, TEXT = 1, range(100, 900_000)
IDS = Ids(size=1_000_000, sentinels=100, eos=EOS, encode=lambda text: [ord(c) for c in text])
FIRST = IDS.first_sentinel


def documents(*sizes):
    """Documents of which no two tokens are the same."""
    ends = np.cumsum([TEXT[0], *sizes])
    return [list(range(start, end)) for start, end in zip(ends[:-1], ends[1:])]


def made(name, texts, inputs, targets, seed=0):
    """(inputs, targets) of each example, without the end of sequence that each must have."""
    examples = OBJECTIVES[name]({"inputs": inputs, "targets": targets}, IDS)(ragged(texts), np.random.default_rng(seed))
    pairs = list(zip(split(examples["inputs"]), split(examples["targets"]), strict=True))
    assert all(len(i) <= inputs and len(t) <= targets for i, t in pairs)
    return pairs


def closed(pairs):
    assert all(i[-1] == EOS == t[-1] for i, t in pairs)
    return [(i[:-1].tolist(), t[:-1].tolist()) for i, t in pairs]


def is_sentinel(token):
    return token > FIRST - 1000


def restored(inputs, targets):
    """Puts what stands behind each sentinel of the targets in the place of that sentinel in the inputs, or around."""
    spans, last = {}, None
    for token in targets:
        if is_sentinel(token):
            last = token
            assert last not in spans
            spans[last] = []
        else:
            spans.setdefault(last, []).append(token)
    return [t for token in inputs for t in (spans[token] if is_sentinel(token) else [token])]


SPANS = [name for name in OBJECTIVES if name.startswith("span_corruption")]


@pytest.mark.parametrize("name", SPANS)
def test_spans_restore_the_text(name):
    texts = documents(300, 700, 1, 45, 1000)
    inputs, targets = (1024, 189) if name.endswith("20") else (512, 126)
    pairs = closed(made(name, texts, inputs, targets))
    assert sum((restored(i, t) for i, t in pairs), []) == sum(texts, [])
    for i, t in pairs:
        sentinels = [token for token in t if is_sentinel(token)]
        assert sentinels == list(range(FIRST, FIRST - len(sentinels), -1))  # descending from the last id
        assert [token for token in i if is_sentinel(token)] == sentinels
        assert t[0] == FIRST and not is_sentinel(t[-1])  # no sentinel closes the targets
    assert {len(i) for i, _ in pairs[:-1]} == {inputs - 1}  # full rows


@pytest.mark.parametrize(
    "name, targets", [("iid_denoising", 220), ("iid_denoising_10", 160), ("iid_denoising_25", 320)]
)
def test_single_tokens_restore_the_text(name, targets):
    """Both sides show what the other lacks: a run of kept tokens is a sentinel in the targets."""
    texts = documents(5000, 400)
    for inputs, shown in closed(made(name, texts, 512, targets)):
        # Sentinels number the runs of each side from the first; text runs of both sides come in turns.
        a, b = _runs(inputs), _runs(shown)
        first_kept = not is_sentinel(inputs[0])
        merged, kept, noise = [], iter(a), iter(b)
        turn = first_kept
        while True:
            run = next(kept if turn else noise, None)
            if run is None:
                break
            merged += run
            turn = not turn
        assert merged == list(range(merged[0], merged[0] + len(merged)))
        assert len(merged) == len([t for t in inputs + shown if not is_sentinel(t)])


def _runs(tokens):
    """Runs of text between sentinels."""
    runs, run = [], []
    for token in tokens:
        if is_sentinel(token):
            runs, run = [*runs, run] if run else runs, []
        else:
            run.append(token)
    return [*runs, run] if run else runs


@pytest.mark.parametrize(
    "name, density", [("iid_denoising_10", 0.1), ("iid_denoising", 0.15), ("iid_denoising_25", 0.25)]
)
def test_rates_of_corruption(name, density):
    pairs = closed(made(name, documents(60_000), 512, 512))
    shown = sum(not is_sentinel(t) for _, targets in pairs for t in targets)
    assert abs(shown / 60_000 - density) < 0.01


def test_half_of_the_tokens_with_as_many_sentinels_as_it_takes():
    pairs = closed(made("iid_denoising_50", documents(60_000), 512, 512))
    shown = sum(not is_sentinel(t) for _, targets in pairs for t in targets)
    assert abs(shown / 60_000 - 0.5) < 0.01
    assert min(t for _, targets in pairs for t in targets if is_sentinel(t)) < FIRST - 100


def test_dropped_tokens_leave_no_trace():
    texts = documents(2000, 900)
    pairs = closed(made("drop_tokens", texts, 512, 130))
    for inputs, targets in pairs:
        both = sorted(inputs + targets)
        assert both == list(range(both[0], both[0] + len(both))) and not any(map(is_sentinel, both))
        assert inputs == sorted(inputs) and targets == sorted(targets)
    assert abs(sum(len(t) for _, t in pairs) / 2900 - 0.15) < 0.03


@pytest.mark.parametrize("name", ["bert_style", "mass_style"])
def test_the_whole_text_is_predicted(name):
    texts = documents(20_000)
    pairs = closed(made(name, texts, 512, 512))
    assert sum((t for _, t in pairs), []) == texts[0]
    changed = [(i, t) for inputs, targets in pairs for i, t in zip(inputs, targets, strict=True) if i != t]
    assert abs(len(changed) / 20_000 - 0.15) < 0.01
    masked = sum(i == FIRST for i, _ in changed) / len(changed)
    assert masked == 1 if name == "mass_style" else abs(masked - 0.9) < 0.02


def test_deshuffling_keeps_to_documents():
    texts = documents(30, 1, 1200, 600)
    pairs = closed(made("deshuffling", texts, 512, 512))
    assert [len(t) for _, t in pairs] == [30, 1, 511, 511, 178, 511, 89]
    assert sum((t for _, t in pairs), []) == sum(texts, [])
    for inputs, targets in pairs:
        assert sorted(inputs) == targets and (inputs != targets or len(targets) < 3)


def test_a_prefix_and_what_follows_it():
    texts = documents(30, 1, 1200, 600)
    pairs = closed(made("prefix_lm", texts, 512, 512))
    assert [i + t for i, t in pairs] == [
        text[start : start + 511] for text in texts for start in range(0, len(text), 511)
    ]
    assert all(t for _, t in pairs) and [bool(i) for i, _ in pairs] == [True, False] + [True] * 5


def test_language_modelling_has_no_inputs():
    texts = documents(700, 200, 50)
    pairs = made("causal_lm", texts, 2, 401)
    assert [i.tolist() for i, _ in pairs] == [[EOS]] * 3
    assert [t.tolist() for _, t in pairs] == [[*sum(texts, [])[start : start + 400], EOS] for start in (0, 400, 800)]
    whole = sum(([*text, EOS] for text in texts), [])
    pairs = made("full_lm", texts, 2, 400)
    assert [t.tolist() for _, t in pairs] == [whole[start : start + 400] for start in (0, 400, 800)]


def test_ul2_deals_documents_to_denoisers():
    texts = documents(*[900] * 280)
    pairs = closed(made("ul2", texts, 512, 512))
    kinds = {"[R]": 0, "[S]": 0, "[X]": 0}
    seen = []
    for inputs, targets in pairs:
        mode = "".join(map(chr, inputs[:3]))
        kinds[mode] += 1
        inputs = inputs[3:]
        if mode == "[S]":
            text = inputs + targets
            assert len(targets) <= len(text) / 2 + 1 and not any(map(is_sentinel, text))
        else:
            text = restored(inputs, targets)
            noise = sum(not is_sentinel(t) for t in targets) / len(text)
            spans = sum(map(is_sentinel, targets))
            assert spans <= 100
            if len(text) > 300:
                assert noise == pytest.approx(0.15 if mode == "[R]" else noise, abs=0.02)
                assert mode == "[R]" or noise > 0.4 or (len(targets) - spans) / spans > 12
        seen += text
    assert sorted(seen) == sum(texts, [])  # every token once
    per_kind = {k: n / len(pairs) for k, n in kinds.items()}
    assert 0.2 < per_kind["[R]"] < 0.4 and 0.1 < per_kind["[S]"] < 0.3 and per_kind["[X]"] > 0.4


def test_documents_are_run_together_and_the_rest_is_kept():
    rows = chopped(run_together(ragged(documents(*[10] * 128))), 100)
    assert rows.lengths.tolist() == [100] * 12 + [80]
    assert chopped(ragged([[1, 2, 3], [], [4], [5, 6]]), 2).lengths.tolist() == [2, 1, 1, 2]


def test_long_documents_give_one_aligned_chunk():
    seen = set()
    for seed in range(60):
        texts = documents(10, 25, 8)
        found = split(chunks(ragged(texts), np.random.default_rng(seed), length=10))
        assert found[0].tolist() == texts[0] and found[2].tolist() == texts[2]
        assert found[1].tolist() in (texts[1][:10], texts[1][10:20], texts[1][20:])
        seen.add(found[1][0])
    assert len(seen) == 3


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_nothing_and_next_to_nothing(name):
    inputs, targets = (1024, 1024)
    assert made(name, [[]], inputs, targets) in ([], [([EOS], [EOS])]) or name == "full_lm"
    for sizes in ([1], [2], [1, 1, 1], [0, 3]):
        for seed in range(5):
            pairs = made(name, documents(*sizes), inputs, targets, seed)
            assert pairs and all(len(t) > 0 for _, t in pairs)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_same_seed_gives_the_same_pairs(name):
    def pairs(seed):
        found = made(name, documents(900, 800), 1024, 1024, seed)
        return [(i.tolist(), t.tolist()) for i, t in found]

    assert pairs(0) == pairs(0)
    assert name in ("causal_lm", "full_lm") or pairs(0) != pairs(1)


def test_an_objective_of_ones_own():
    """Regular noise, its tokens replaced with others of the text; segments of random lengths."""
    objective = denoising.denoise(
        {"inputs": 64, "targets": 64}, IDS, noise_density=0.25, noise_mask=masks.regular,
        inputs_of=corruption.noise_token_to_gathered_token, together=False, shortest=8,
    )  # fmt: skip
    texts = documents(*[500] * 40)
    examples = objective(ragged(texts), np.random.default_rng(0))
    pairs = closed([*zip(split(examples["inputs"]), split(examples["targets"]))])
    assert sum((t for _, t in pairs), []) == sum(texts, [])
    assert all(len(i) == len(t) <= 63 for i, t in pairs)
    changed = np.mean([a != b for i, t in pairs for a, b in zip(i, t)])
    assert 0.2 < changed < 0.27  # a token may be replaced with itself
    assert len({len(t) for _, t in pairs}) > 20


def test_segments_of_random_lengths_are_log_uniform():
    """As many documents are cut to lengths up to sqrt(8 * 512) = 64 as to greater ones."""
    sizes = [
        chopped_at_random(ragged([range(600)]), np.random.default_rng(seed), 512).lengths for seed in range(2000)
    ]  # fmt: skip
    assert all(row.sum() == 600 and (row[:-1] == row[0]).all() and row[-1] <= row[0] for row in sizes)
    first = np.array([row[0] for row in sizes])
    assert first.min() == 8 and 500 < first.max() < 512 and abs((first < 64).mean() - 0.5) < 0.05


@pytest.mark.parametrize("lengths", [{"inputs": 64, "targets": 63}, {"inputs": 8, "targets": 8}])
def test_an_objective_of_ones_own_has_room(lengths):
    with pytest.raises(UserError, match="Denoising (of 64|needs 9)"):
        denoising.denoise(
            lengths, IDS, noise_density=0.5, noise_mask=masks.iid, inputs_of=corruption.drop_noise_tokens, shortest=8
        )
