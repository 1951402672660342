"""Examples to batches: packing, host sharding, position, global arrays."""
