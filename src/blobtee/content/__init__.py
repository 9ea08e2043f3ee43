"""Blobs by digest: protocols, stores, copying."""
