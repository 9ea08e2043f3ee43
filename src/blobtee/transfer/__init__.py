"""What the verbs do: pull, push, copy, verify, and where images come from and go to."""

from blobtee.transfer.addresses import Address, FileAddress, Form, parse
from blobtee.transfer.copying import copy, push
from blobtee.transfer.images import open_image
from blobtee.transfer.places import Moved, Report
from blobtee.transfer.pulling import pull
from blobtee.transfer.remote import default_registry
from blobtee.transfer.verifying import Problem, Verification, verify

__all__ = [
    "Address",
    "FileAddress",
    "Form",
    "Moved",
    "Problem",
    "Report",
    "Verification",
    "copy",
    "default_registry",
    "open_image",
    "parse",
    "pull",
    "push",
    "verify",
]
