"""T5 in plain numpy and float64, written from the paper for comparison: loops over rows, layers and heads.

Sources: Raffel et al. 2020, section 2.1 and 3.1.1; T5 1.1: Shazeer 2020, "GLU variants improve Transformer".
A query attends to an explicit list of visible keys; nothing is masked by a large negative number.
"""

import math

import numpy as np


def bucket(query: int, key: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """Bucket of a pair of positions, by definition and in whole numbers.

    Half of the buckets are one distance each. The rest divide [exact, max_distance) evenly in log space:
    bucket exact + j begins at exact * (max_distance / exact) ** (j / n).
    """
    base = 0
    if bidirectional:
        buckets //= 2
        if key > query:
            base = buckets
        distance = abs(query - key)
    else:
        distance = max(query - key, 0)
    exact = buckets // 2
    if distance < exact:
        return base + distance
    n = buckets - exact
    begun = sum(max_distance**j * exact**n <= distance**n * exact**j for j in range(1, n))
    return base + exact + begun


def _norm(x, scale, epsilon):
    return np.stack([row / math.sqrt(np.mean(row**2) + epsilon) * scale for row in x])


def _activate(name, x):
    if name == "relu":
        return np.where(x > 0, x, 0.0)
    if name == "gelu":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + np.exp(-x))
    return {"linear": x}[name]


def _attention(x, source, kernels, layer, heads, bias, visible):
    """[Q, D] from [Q, D] and [S, D]; bias [H, Q, S] or None; visible[q] lists the keys that q sees."""
    q, k, v, o = (np.asarray(kernels[name]["kernel"][layer], np.float64) for name in ("query", "key", "value", "out"))
    width = q.shape[1] // heads
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        queries, keys, values = x @ q[:, part], source @ k[:, part], source @ v[:, part]
        attended = np.zeros_like(queries)
        for i, seen in enumerate(visible):
            if seen:
                scores = keys[seen] @ queries[i] + (0 if bias is None else bias[h, i, seen])
                weights = np.exp(scores - scores.max())
                attended[i] = weights / weights.sum() @ values[seen]
        out += attended @ o[part]
    return out


def _mlp(x, kernels, layer, activations):
    names = ["wi"] if len(activations) == 1 else ["wi_0", "wi_1"]
    hidden = 1.0
    for name, activation in zip(names, activations):
        hidden = hidden * _activate(activation, x @ np.asarray(kernels[name]["kernel"][layer], np.float64))
    return hidden @ np.asarray(kernels["wo"]["kernel"][layer], np.float64)


def _bias(table, length, bidirectional, max_distance):
    table = np.asarray(table, np.float64)
    heads, buckets = table.shape
    bias = np.empty((heads, length, length))
    for i in range(length):
        for j in range(length):
            bias[:, i, j] = table[:, bucket(i, j, bidirectional, buckets, max_distance)]
    return bias


def _stack(arch, params, stack, x, own, encoded=None, across=None, bidirectional=False):
    """The output [L, D] of a stack's layers and norm. `own[i]` and `across[i]` list what position i sees."""
    epsilon, heads = arch.norm_epsilon, arch.num_heads
    layers = params[stack]["layers"]
    attention = "attention" if stack == "encoder" else "self_attention"

    def norm(x, scale):
        return _norm(x, np.asarray(scale, np.float64), epsilon)

    def bias_of(layer):
        table = layers["relpos_bias"]["rel_embedding"][layer] if arch.relative_bias_per_layer else shared
        return _bias(table, len(x), bidirectional, arch.relative_max_distance)

    shared = None if arch.relative_bias_per_layer else params[stack]["relpos_bias"]["rel_embedding"]
    for layer in range(arch.encoder_layers if stack == "encoder" else arch.decoder_layers):
        h = norm(x, layers[f"pre_{attention}_layer_norm"]["scale"][layer])
        x = x + _attention(h, h, layers[attention], layer, heads, bias_of(layer), own)
        if encoded is not None:
            h = norm(x, layers["pre_cross_attention_layer_norm"]["scale"][layer])
            x = x + _attention(h, encoded, layers["encoder_decoder_attention"], layer, heads, None, across)
        h = norm(x, layers["pre_mlp_layer_norm"]["scale"][layer])
        x = x + _mlp(h, layers["mlp"], layer, arch.mlp_activations)
        if arch.adapter_dim:
            h = norm(x, layers["adapter"]["layer_norm"]["scale"][layer])
            x = x + _mlp(h, layers["adapter"], layer, ("relu",))
    return norm(x, params[stack][f"{stack}_norm"]["scale"])


def _head(arch, params, x):
    if arch.tied_head or arch.scaled_head:
        x = x / math.sqrt(x.shape[1])
    if arch.tied_head:
        return x @ np.asarray(params["token_embedder"]["embedding"], np.float64).T
    return x @ np.asarray(params["decoder"]["logits_dense"]["kernel"], np.float64)


def _row(arch, params, inputs, targets, input_segments, target_segments):
    embedding = np.asarray(params["token_embedder"]["embedding"], np.float64)
    sources, queries = range(len(inputs)), range(len(targets))
    among_inputs = [[j for j in sources if input_segments[j] == input_segments[i] != 0] for i in sources]
    before = [[j for j in queries if j <= i and target_segments[j] == target_segments[i] != 0] for i in queries]
    across = [[j for j in sources if input_segments[j] == target_segments[i] != 0] for i in queries]
    encoder = "decoder" if arch.structure == "shared" else "encoder"
    encoded = _stack(arch, params, encoder, embedding[inputs], among_inputs, bidirectional=True)
    return _head(arch, params, _stack(arch, params, "decoder", embedding[targets], before, encoded, across))


def _row_alone(arch, params, tokens, segments, is_prefix):
    """A decoder alone: what lies ahead is seen within a prefix only."""
    embedding = np.asarray(params["token_embedder"]["embedding"], np.float64)
    places = range(len(tokens))
    own = [
        [j for j in places if segments[j] == segments[i] != 0 and (j <= i or (is_prefix[i] and is_prefix[j]))]
        for i in places
    ]
    bidirectional = arch.structure == "prefix_lm"
    return _head(arch, params, _stack(arch, params, "decoder", embedding[tokens], own, bidirectional=bidirectional))


def logits(arch, params, batch):
    """Float64 logits [B, T, V].

    Without segment ids a row is one example: all of its targets see all inputs that are not padding (id 0).
    """
    targets = np.asarray(batch["decoder_input_tokens"])
    target_segments = np.asarray(batch.get("decoder_segment_ids", np.ones_like(targets))).astype(int)
    if arch.decoder_only:
        prefixes = np.asarray(batch.get("decoder_causal_attention", np.zeros_like(targets)))
        return np.stack([_row_alone(arch, params, *row) for row in zip(targets, target_segments, prefixes)])
    inputs = np.asarray(batch["encoder_input_tokens"])
    input_segments = np.asarray(batch.get("encoder_segment_ids", inputs != 0)).astype(int)
    rows = zip(inputs, targets, input_segments, target_segments)
    return np.stack([_row(arch, params, *row) for row in rows])


def token_loss(scores, target, z_loss, label_smoothing):
    """Loss in nats of one token: cross-entropy with the smoothed target, less its entropy, plus z_loss * log(Z)^2."""
    scores = np.asarray(scores, np.float64)
    log_z = scores.max() + math.log(np.exp(scores - scores.max()).sum())
    wanted = np.full(len(scores), label_smoothing / (len(scores) - 1))
    wanted[target] = 1 - label_smoothing
    entropy = -sum(p * math.log(p) for p in wanted if p > 0)
    return -(wanted @ (scores - log_z)) - entropy + z_loss * log_z**2
