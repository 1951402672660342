"""Pretraining objectives: documents of tokens -> pairs of inputs and targets.

An objective is a function of the row lengths and the vocabulary's ids that returns a
function of documents and a random generator. All of it is numpy on whole groups of
documents, so the same code runs inside a tf.data pipeline and without TensorFlow:

  ragged.py         rows of different lengths as one array
  lengths.py        how long a segment may be for its inputs and targets to fit
  segments.py       documents -> segments
  masks.py          which tokens of a segment are noise
  corruption.py     segments and masks -> inputs, targets
  denoising.py      the objectives
  named.py          their names: those of tasks and of gin/objectives
  preprocess.py     one of them as a seqio preprocessor (the only part that loads TensorFlow)
"""
