"""Taking over what containerd kept in its own store: blobs, what its namespaces called them, unfinished blobs."""

from blobtee.plugin.adopting.taking import Adopted, adopt, content_root

__all__ = ["Adopted", "adopt", "content_root"]
