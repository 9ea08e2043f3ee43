"""The data of the OCI and Docker image formats. Pure: nothing here reads, writes or hashes.

Sources: the OCI image and distribution specifications, Docker's image manifest v2 schema 2, and
`distribution/reference` for names.
"""

from blobtee.oci.descriptor import Descriptor
from blobtee.oci.digest import Digest, chain_id, chain_ids
from blobtee.oci.documents import Config, Index, Manifest, parse_document
from blobtee.oci.mediatypes import Compressed, layer_compression
from blobtee.oci.platform import Platform
from blobtee.oci.reference import Reference

__all__ = [
    "Compressed",
    "Config",
    "Descriptor",
    "Digest",
    "Index",
    "Manifest",
    "Platform",
    "Reference",
    "chain_id",
    "chain_ids",
    "layer_compression",
    "parse_document",
]
