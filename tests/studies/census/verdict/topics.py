"""All kinds of verdict, each with its checker."""

from tests.studies.census.verdict.checks import (
    domains,
    drains,
    massive,
    peaks,
    secondary,
    sinks,
    sinks_after,
    token_types,
    virtual,
    windows,
)
from tests.studies.census.verdict.evidence import Topic

TOPICS: dict[str, Topic] = {
    "sinks": sinks.TOPIC,
    "windows": windows.TOPIC,
    "sinks_after": sinks_after.TOPIC,
    "drains": drains.TOPIC,
    "virtual": virtual.TOPIC,
    "domains": domains.TOPIC,
    "massive": massive.TOPIC,
    "peaks": peaks.TOPIC,
    "secondary": secondary.TOPIC,
    "token_types": token_types.TOPIC,
}
