"""Packing layers: a tar into a blob of any compression, and a blob of one compression into another."""

from blobtee.conversion.convert import convert
from blobtee.conversion.packer import Packed, Packer

__all__ = ["Packed", "Packer", "convert"]
