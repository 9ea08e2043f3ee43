"""What the verbs do: pull, push, copy, convert, build, inspect, verify, and where images come from and go to."""

from blobtee.transfer.addresses import Address, FileAddress, Form, parse
from blobtee.transfer.building import build, write_layer
from blobtee.transfer.converting import convert
from blobtee.transfer.copying import copy, push
from blobtee.transfer.images import open_image
from blobtee.transfer.inspecting import Inspection, LayerFacts, inspect, raw_document
from blobtee.transfer.places import Moved, Report
from blobtee.transfer.pulling import Known, know, pull
from blobtee.transfer.remote import default_registry
from blobtee.transfer.verifying import Problem, Verification, verify

__all__ = [
    "Address",
    "FileAddress",
    "Form",
    "Inspection",
    "Known",
    "LayerFacts",
    "Moved",
    "Problem",
    "Report",
    "Verification",
    "build",
    "convert",
    "copy",
    "default_registry",
    "inspect",
    "know",
    "open_image",
    "parse",
    "pull",
    "push",
    "raw_document",
    "verify",
    "write_layer",
]
