"""Decoding with a cache against the full forward pass run again at each length, and against transformers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from t5x_lite import program
from t5x_lite.errors import UserError
from t5x_lite.model import network, sampling
from t5x_lite.model.decoding import Strategy
from tests.model import beam_reference
from tests.train import tiny

pytestmark = pytest.mark.sharded

LENGTH, WIDTH, VOCAB = 8, 3, tiny.ARCHITECTURE.vocab_size
ALONE = {"encoder_layers": 0}
ARCHITECTURES = {
    "1.0": {"mlp_activations": ("relu",), "tied_head": True},
    "1.1": {},
    "scaled head": {"scaled_head": True},
    "bias per layer": {"relative_bias_per_layer": True},
    "shared": {"structure": "shared", "adapter_dim": 4},
    "language model": {"structure": "language_model", **ALONE},
    "prefix LM": {"structure": "prefix_lm", "relative_bias_per_layer": True, **ALONE},
}
BEAM = Strategy("beam", beam_size=WIDTH, num_return=WIDTH)


def inputs(rows=8, length=12):
    """Rows of 1 to `length` tokens, padded."""
    tokens = np.random.default_rng(3).integers(2, VOCAB, (rows, length)).astype(np.int32)
    tokens[np.arange(length) >= np.linspace(1, length, rows).astype(int)[:, None]] = 0
    return tokens


@functools.cache
def job(name: str):
    return tiny.job(model=dataclasses.replace(tiny.ARCHITECTURE, **ARCHITECTURES[name]))


@functools.cache
def parameters(name: str, seed: int = 5) -> dict:
    with jax.set_mesh(job(name).partition.build(jax.devices()[:1])):
        return jax.device_get(
            jax.jit(functools.partial(network.init, job(name).model, tiny.Rules()))(jax.random.key(seed))
        )


def generated(members, strategy, eos, tokens=None, row_ids=None, length=LENGTH, devices=1, seed=0, **changed):
    """`generate_step` of jobs with the parameters of each, laid out anew."""
    tokens = inputs() if tokens is None else tokens
    row_ids = np.arange(len(tokens), dtype=np.int32) if row_ids is None else row_ids
    jobs = [dataclasses.replace(one, **changed) for one, _ in members]
    with jax.set_mesh(jobs[0].partition.build(jax.devices()[:devices])):
        laid = [program.lay_out(one, jax.sharding.get_mesh()) for one in jobs]
        placed = tuple(
            jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, one.params)
            for one, (_, params) in zip(laid, members)
        )
        decode = program.generate_step(laid, strategy, length, eos, seed)
        return jax.device_get(decode(placed, jax.device_put(tokens, laid[0].batch_sharding), row_ids))


@functools.cache
def forward(name: str, seed: int = 5):
    """(row of inputs, token tuples) -> logits of the next token of each, by the whole network at one length."""
    arch = job(name).model
    with jax.set_mesh(job(name).partition.build(jax.devices()[:1])):
        laid = program.lay_out(job(name), jax.sharding.get_mesh())
        network_of = jax.jit(lambda params, batch: nnx.merge(laid.graphdef, params)(batch))

    def next_logits(row, histories):
        held = row[row > 0]
        before = len(held) if arch.decoder_only else 0
        targets = np.zeros((WIDTH, before + LENGTH), np.int32)
        for target, history in zip(targets, histories):
            target[1 : before + 1] = held if before else 0
            target[before + 1 : before + 1 + len(history)] = history
        targets = np.pad(targets, ((0, 0), (0, 12 + LENGTH - targets.shape[1])))
        batch = {"decoder_input_tokens": targets}
        if not arch.decoder_only:
            batch["encoder_input_tokens"] = np.tile(row, (WIDTH, 1))
        if arch.structure == "prefix_lm":
            batch["decoder_causal_attention"] = np.tile(np.arange(targets.shape[1]) <= before, (WIDTH, 1)).astype(
                np.int32
            )
        with jax.set_mesh(job(name).partition.build(jax.devices()[:1])):
            logits = np.asarray(network_of(parameters(name, seed), batch))
        return [logits[i, before + len(history)] for i, history in enumerate(histories)]

    return next_logits


def greedy_reference(next_logits, eos, row):
    """(tokens, log-probability) of a row."""
    tokens, total = (), 0.0
    while len(tokens) < LENGTH and eos not in tokens:
        (logits,) = next_logits(row, [tokens])
        tokens += (int(np.argmax(logits)),)
        total += beam_reference.log_softmax(logits)[tokens[-1]]
    return tokens, total


def padded(found):
    return np.array([tokens + (0,) * (LENGTH - len(tokens)) for tokens in found])


@functools.cache
def end_of(name: str) -> int:
    """An id that an untrained model does produce: the third of the last row."""
    return greedy_reference(forward(name), -1, inputs()[-1])[0][2]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_beam_with_a_cache_is_that_of_the_full_forward_pass(name):
    """With every sequence of the n-best list, its score and its log-probability."""
    eos = end_of(name)
    ids, scores, totals = generated([(job(name), parameters(name))], BEAM, eos)
    ended = (ids == eos).any(axis=-1)
    assert ended.any() and not ended.all()  # both kinds are tried
    for row, *found in zip(inputs(), ids, scores, totals):
        expected, _ = beam_reference.search(functools.partial(forward(name), row), WIDTH, LENGTH, eos, 0.6)
        np.testing.assert_array_equal(found[0], padded([tokens for _, _, tokens in expected]))
        np.testing.assert_allclose(found[1], [score for score, _, _ in expected], rtol=1e-4)
        np.testing.assert_allclose(found[2], [total for _, total, _ in expected], rtol=1e-4)


@pytest.mark.parametrize("name", ["1.1", "prefix LM"])
def test_greedy_is_the_most_probable_token_a_beam_of_one_and_a_sample_without_temperature(name):
    eos, members = end_of(name), [(job(name), parameters(name))]
    expected = [greedy_reference(forward(name), eos, row) for row in inputs()]
    for strategy in (Strategy(), Strategy("beam", beam_size=1), Strategy("sample", temperature=0)):
        ids, scores, totals = generated(members, strategy, eos)
        np.testing.assert_array_equal(ids[:, 0], padded([tokens for tokens, _ in expected]))
        np.testing.assert_allclose(totals[:, 0], [total for _, total in expected], rtol=1e-4)
        np.testing.assert_array_equal(scores, totals)


@pytest.mark.parametrize("layout", ["2d", "fsdp", "tensor", "data", "unrolled"])
def test_a_layout_changes_nothing(layout):
    name = "prefix LM" if layout == "2d" else "1.0"
    members, eos = [(job(name), parameters(name))], end_of(name)
    expected = generated(members, BEAM, eos)
    if layout == "unrolled":
        unrolled = dataclasses.replace(job(name).model, scan_layers=False)
        found = generated(members, BEAM, eos, model=unrolled)
    else:
        # Four heads: the tensor layout cuts them over as many devices.
        found = generated(members, BEAM, eos, devices=4 if layout == "tensor" else 8, partition=tiny.shipped(layout))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize("strategy", [Strategy(), BEAM, Strategy("sample", num_return=2)], ids=lambda s: s.method)
@pytest.mark.parametrize(("layout", "devices"), [("data", 1), ("tensor", 4)])
def test_a_row_alone_is_decoded_as_among_others(layout, devices, strategy):
    """On one device, and on several that cut no rows."""
    members, eos = [(job("prefix LM"), parameters("prefix LM"))], end_of("prefix LM")
    among = generated(members, strategy, eos)
    alone = generated(
        members, strategy, eos, inputs()[-1:], np.array([7], np.int32), devices=devices, partition=tiny.shipped(layout)
    )
    np.testing.assert_array_equal(alone[0][0], among[0][-1])
    np.testing.assert_allclose(alone[2][0], among[2][-1], rtol=1e-5)


def test_a_sample_depends_on_its_row_the_seed_and_its_number_alone():
    members, eos = [(job("prefix LM"), parameters("prefix LM"))], -1
    strategy = Strategy("sample", num_return=3, temperature=0.8, top_k=20, top_p=0.9)
    ids, scores, totals = generated(members, strategy, eos)
    assert (np.diff(scores, axis=1) <= 0).all() and len(np.unique(ids[0], axis=0)) == 3
    # Other rows beside it, in another order, with more padding.
    order = np.array([5, 1, 6, 2])
    longer = np.pad(inputs()[order], ((0, 0), (0, 5)))
    np.testing.assert_array_equal(generated(members, strategy, eos, longer, order.astype(np.int32))[0], ids[order])
    sharded = generated(members, strategy, eos, devices=8, partition=tiny.shipped("2d"))
    np.testing.assert_array_equal(sharded[0], ids)
    assert not np.array_equal(generated(members, strategy, eos, seed=1)[0], ids)
    # What is given is their log-probability by the model, whatever they were drawn from.
    for tokens, total in zip(ids[2], totals[2]):
        expected = sum(
            beam_reference.log_softmax(forward("prefix LM")(inputs()[2], [tuple(tokens[:i])])[0])[token]
            for i, token in enumerate(tokens)
        )
        np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_an_ensemble_is_the_mean_of_logits():
    """Of models of different structures, and not the mean of their probabilities."""
    names, eos = ("1.1", "prefix LM"), -1
    members = [(job(name), parameters(name)) for name in names]

    def combined(mean):
        def next_logits(row, histories):
            return mean([np.stack(forward(name)(row, histories)).astype(np.float64) for name in names])

        tokens, totals = zip(*(greedy_reference(next_logits, eos, row) for row in inputs()))
        return padded(tokens), totals

    of_logits, totals = combined(lambda logits: np.mean(logits, axis=0))
    of_probabilities, _ = combined(
        lambda logits: np.log(
            np.mean([np.exp([beam_reference.log_softmax(x) for x in each]) for each in logits], axis=0)
        )
    )
    assert not np.array_equal(of_logits, of_probabilities)
    ids, _, found = generated(members, Strategy(), eos)
    np.testing.assert_array_equal(ids[:, 0], of_logits)
    np.testing.assert_allclose(found[:, 0], totals, rtol=1e-4)


def test_decoding_stops_where_every_row_has_ended(monkeypatch):
    steps = []
    advance = sampling.advance

    def counted(state, logits, step, **rest):
        jax.debug.callback(lambda at: steps.append(int(at)), step)
        return advance(state, logits, step, **rest)

    monkeypatch.setattr(sampling, "advance", counted)
    row, eos = inputs()[-1:], end_of("1.1")
    expected, _ = greedy_reference(forward("1.1"), eos, row[0])
    ids, _, _ = generated([(job("1.1"), parameters("1.1"))], Strategy(), eos, row, length=200)
    jax.effects_barrier()
    assert tuple(ids[0, 0, : len(expected)]) == expected and not ids[0, 0, len(expected) :].any()
    assert sorted(steps) == list(range(len(expected)))


@pytest.mark.parametrize("name", ["1.0", "1.1", "bias per layer"])
def test_tokens_are_those_of_transformers(name, tmp_path):
    """Greedy, and a beam without a length penalty: by its two other rules, and where these do not matter the same."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors import safe_open

    from t5x_lite.interop import checkpoint, huggingface, lazy

    arrays = {path: lazy.of_array(array) for path, array in flatten_dict(parameters(name)).items()}
    huggingface.write(tmp_path, checkpoint.Model(job(name).model, arrays))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    if not job(name).model.tied_head:
        # transformers 5 ties whatever the configuration says, and umT5's logits are then scaled.
        model.config.tie_word_embeddings = False
        with safe_open(tmp_path / "model.safetensors", "pt") as stored:
            model.lm_head.weight = torch.nn.Parameter(stored.get_tensor("lm_head.weight"))
    tokens = torch.tensor(inputs().astype(np.int64))

    def theirs(eos, **settings):
        model.generation_config.eos_token_id = None if eos < 0 else eos
        with torch.inference_mode():
            ids = model.generate(
                input_ids=tokens, attention_mask=(tokens > 0).long(), max_new_tokens=LENGTH, do_sample=False, **settings
            )[:, 1:].numpy()
        # A beam has the end token, and not the padding whose id is 0, behind what is shorter than the longest.
        ids = np.where(np.cumsum(ids == eos, axis=1) - (ids == eos) > 0, 0, ids)
        return np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))

    eos, members = end_of(name), [(job(name), parameters(name))]
    np.testing.assert_array_equal(generated(members, Strategy(), eos)[0][:, 0], theirs(eos, num_beams=1))
    flat = Strategy("beam", beam_size=WIDTH, length_penalty=0.0, num_return=WIDTH)
    settings = {"num_beams": WIDTH, "length_penalty": 0.0, "early_stopping": False}
    np.testing.assert_array_equal(generated(members, flat, -1)[0][:, 0], theirs(-1, **settings))
    by_their_rules = [
        beam_reference.search(functools.partial(forward(name), row), WIDTH, LENGTH, eos, 0.0, as_in_transformers=True)[
            0
        ]
        for row in inputs()
    ]
    np.testing.assert_array_equal(theirs(eos, **settings), padded([found[0][2] for found in by_their_rules]))


@pytest.mark.parametrize(
    "settings, flag",
    [
        ({"method": "best"}, "--decode"),
        ({"method": "beam", "beam_size": 0}, "--beam_size"),
        ({"method": "beam", "length_penalty": -0.5}, "--length_penalty"),
        ({"method": "beam", "length_penalty": float("nan")}, "--length_penalty"),
        ({"method": "beam", "num_return": 5}, "--num_return"),
        ({"method": "greedy", "num_return": 2}, "--num_return"),
        ({"method": "sample", "temperature": -1}, "--temperature"),
        ({"method": "sample", "top_k": 1.5}, "--top_k"),
        ({"method": "sample", "top_p": 0}, "--top_p"),
        ({"method": "sample", "top_p": 1.1}, "--top_p"),
        ({"method": "greedy", "top_p": 0.9}, "--top_p"),
        ({"method": "sample", "beam_size": 8}, "--beam_size"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(settings, flag):
    with pytest.raises(UserError, match=f"^{flag} is "):
        Strategy(**settings)


def test_a_strategy_says_its_width():
    widths = [Strategy(), Strategy("beam"), Strategy("sample", num_return=3, temperature=0)]
    assert [one.width for one in widths] == [1, 4, 3]


def test_weights_are_gathered_once_and_not_in_each_step():
    """Of a decoder alone, all: where its inputs are read, and in every step, they are whole."""
    of = dataclasses.replace(job("language model"), partition=tiny.on_mesh("hsdp"))
    with jax.set_mesh(of.partition.build(jax.devices()[:8])):
        mesh = jax.sharding.get_mesh()
        laid = program.lay_out(of, mesh)
        decode = program.generate_step([laid], Strategy("greedy"), LENGTH, -1)
        tokens = jax.ShapeDtypeStruct((8, 12), np.int32, sharding=laid.batch_sharding)
        compiled = decode.lower((laid.params,), tokens, np.arange(8, dtype=np.int32)).compile()
    found = tiny.collectives_of(compiled, dict(mesh.shape))
    gathered = sum(c.times * c.bytes for c in found if c.kind == "all-gather" and c.axes == ("fsdp",))
    assert gathered == sum(4 * p.size for p in jax.tree.leaves(laid.params) if "fsdp" in p.sharding.spec)
