"""The outer form of an intervention as JSON, known without the interventions themselves."""

import json

from sinklens.errors import InputError

FORMAT = "sinklens-intervention"
VERSION = 1


def content_of(text: str) -> object:
    """What the form holds, not looked at.

    Raises:
        InputError: Damaged text, another format or a newer version.
    """
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"Expected an intervention as JSON, got text that cannot be read: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'Expected JSON with "format": "{FORMAT}", as to_json() writes it.')
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"The intervention's format version is damaged: {version!r}.")
    if version > VERSION:
        raise InputError(
            f"The intervention has format version {version}, this sinklens reads up to {VERSION}; update sinklens."
        )
    return content.get("intervention")
