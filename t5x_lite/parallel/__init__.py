"""Mesh, logical axes to shardings, multi-host start, chip table."""
