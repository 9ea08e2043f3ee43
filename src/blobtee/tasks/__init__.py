"""Work in threads: cancellation, groups, single flight, progress.

Context (what cancels the work, who is told of progress, and what higher rooms add) travels in
`contextvars`: every thread started here runs in a copy of its starter's context.
"""

from blobtee.tasks.allowance import background, bandwidth_of, in_background
from blobtee.tasks.belt import Belt
from blobtee.tasks.cancellation import Cancellation, check, current, scope, shield, sleep
from blobtee.tasks.detached import Detached
from blobtee.tasks.flight import SingleFlight
from blobtee.tasks.group import Group, Task
from blobtee.tasks.ordered import Ordered, usable_threads
from blobtee.tasks.progress import Event, Progress, Reporter, meter, reporting

__all__ = [
    "Belt",
    "Cancellation",
    "Detached",
    "Event",
    "Group",
    "Ordered",
    "Progress",
    "Reporter",
    "SingleFlight",
    "Task",
    "background",
    "bandwidth_of",
    "check",
    "current",
    "in_background",
    "meter",
    "reporting",
    "scope",
    "shield",
    "sleep",
    "usable_threads",
]
