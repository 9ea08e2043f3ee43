"""Signing in: credentials as tools keep them, and tokens bought with them."""

from blobtee.registry.auth.credentials import Credential, Credentials, FileCredentials, NoCredentials
from blobtee.registry.auth.signer import Signer

__all__ = ["Credential", "Credentials", "FileCredentials", "NoCredentials", "Signer"]
