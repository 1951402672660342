"""Batches to logits, loss and decoded tokens: pure functions of arrays and parameters."""
