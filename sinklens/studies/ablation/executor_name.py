"""What an executor may be called; known without loading one."""

import re

from sinklens.errors import InputError

ADDRESS = r"(tcp|tls|ucx|ws|wss|inproc)://.+"


def check_executor(name: str) -> None:
    """Refuse a name that :func:`parse_executor` does not take, before a model is loaded.

    Raises:
        InputError: It is none.
    """
    if name == "serial" or re.fullmatch(r"processes(:0*[1-9]\d*)?", name) or re.fullmatch(ADDRESS, name):
        return
    raise InputError(
        "The executor must be serial, processes, processes:N or the address of a Dask scheduler such as "
        f"tcp://host:8786; got {name!r}."
    )
