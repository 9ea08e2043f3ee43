"""Packing layers: a tar into a blob of any compression, and a blob of one compression into another."""
