"""blobtee: bytes of blobs, proven, from wherever they are."""
