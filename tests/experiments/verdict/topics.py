"""All kinds of verdict, each with its checker."""

from tests.experiments.verdict.checks import domains, drains, massive, sinks, sinks_after, virtual, windows
from tests.experiments.verdict.evidence import Topic

TOPICS: dict[str, Topic] = {
    "sinks": sinks.TOPIC,
    "windows": windows.TOPIC,
    "sinks_after": sinks_after.TOPIC,
    "drains": drains.TOPIC,
    "virtual": virtual.TOPIC,
    "domains": domains.TOPIC,
    "massive": massive.TOPIC,
}

UNCHECKED: tuple[str, ...] = (
    "Residual peak", "Mild residual peak", "No residual peak",
    "Secondary sinks",
)  # fmt: skip
"""How sentences begin whose checker is still to come; to be emptied."""
