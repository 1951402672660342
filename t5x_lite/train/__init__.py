"""Optimizer, schedule, step, loop, checkpoint, metrics."""
