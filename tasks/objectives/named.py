"""The objectives by name: the last part of a pretraining task's name, and a file of gin/objectives.

The comments say what the T5 paper and the gin files of its repository call them.
"""

from functools import partial

from t5x_lite.tasks.objectives import denoising as of

_ul2_spans = partial(of.span_corruption, fit_sentinels=True)

# UL2: two regular denoisers, four extreme ones (long spans, much noise, or both) and a sequential one.
_UL2 = (
    partial(_ul2_spans, noise_density=0.15, mean_span=3.0, mode="[R]"),
    partial(_ul2_spans, noise_density=0.15, mean_span=8.0, mode="[R]"),
    partial(of.prefix_lm, noise_density=0.25, mode="[S]"),
    partial(_ul2_spans, noise_density=0.5, mean_span=3.0, mode="[X]"),
    partial(_ul2_spans, noise_density=0.5, mean_span=8.0, mode="[X]"),
    partial(_ul2_spans, noise_density=0.15, mean_span=64.0, mode="[X]"),
    partial(_ul2_spans, noise_density=0.5, mean_span=64.0, mode="[X]"),
)

OBJECTIVES = {
    "span_corruption": of.span_corruption,  # table 7, span_3_15_u_u; T5 1.1, mT5 and the final T5 models
    "span_corruption_mean_2": partial(of.span_corruption, mean_span=2.0),  # table 7, span_2_15_u_u
    "span_corruption_mean_5": partial(of.span_corruption, mean_span=5.0),  # table 7, span_5_15_u_u
    "span_corruption_mean_10": partial(of.span_corruption, mean_span=10.0),  # table 7, span_10_15_u_u
    "span_corruption_mean_20": partial(of.span_corruption, mean_span=20.0),  # ByT5
    "iid_denoising": of.iid_denoising,  # tables 5 and 6: replace corrupted spans, the baseline; iid_15_u_u
    "iid_denoising_10": partial(of.iid_denoising, noise_density=0.1),  # table 6, iid_10_u_u
    "iid_denoising_25": partial(of.iid_denoising, noise_density=0.25),  # table 6, iid_25_u_u
    "iid_denoising_50": partial(of.iid_denoising, noise_density=0.5),  # table 6, iid_50_u_u
    "drop_tokens": of.drop_tokens,  # table 5: drop corrupted tokens; iid_15_d_d
    "bert_style": of.bert_style,  # table 4; iid_15_r10s90_f
    "mass_style": of.mass_style,  # table 5; iid_15_m_f
    "deshuffling": of.deshuffling,  # table 4; all_permute
    "prefix_lm": of.prefix_lm,  # table 4; prefix_lm
    "causal_lm": of.causal_lm,  # table 2, "LM"; lm
    "full_lm": of.full_lm,  # as causal_lm, with an end of sequence after each document
    "ul2": of.one_of(_UL2),
}

# The texts that tell the denoisers of UL2 which one they are.
MODES = tuple(sorted({denoiser.keywords["mode"] for denoiser in _UL2}))
