"""What a number is: its definition, versioned, which travels with the number."""

from dataclasses import dataclass
from typing import Any

from sinklens.arguments import check_fields


@dataclass(frozen=True)
class Metric:
    """A versioned definition; it travels with every table that uses it. A changed formula bumps the version."""

    name: str
    version: int
    definition: str
    source: str

    def __post_init__(self) -> None:
        check_fields(self)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"version": self.version, "definition": self.definition, "source": self.source}
