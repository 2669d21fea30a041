"""Install requirements from requirements.lock alone: what pip would choose, each file by its hash.

    python .ci/locked.py .[dev]

pip can name what it would install but takes hashes for a complete list only, and which packages are needed depends on
the machine. So it is asked for the list first; the list is then cut out of the lock and installed with
``--require-hashes``, without looking at anything else.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """The entries of a lock by canonical name, each with its hashes."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", text))
    return {canonical(re.split(r"[=\[ ]", entry)[0]): entry.strip() for entry in entries if entry.strip()}


def chosen(requirements: list[str]) -> list[str]:
    """What pip would install now for these requirements, under the constraints, besides the checkout itself."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        asked = [*PIP, "--quiet", "--dry-run", "--no-build-isolation", "--report", str(report)]
        subprocess.run([*asked, "--constraint", "constraints.txt", *requirements], check=True, cwd=ROOT)
        found = json.loads(report.read_text("utf-8"))["install"]
    names = [canonical(each["metadata"]["name"]) for each in found]
    return [name for name in names if name != "sinklens"]


def main() -> None:
    """Install the requirements on the command line."""
    entries = locked((ROOT / "requirements.lock").read_text("utf-8"))
    names = chosen(sys.argv[1:])
    missing = [name for name in names if name not in entries]
    if missing:
        raise SystemExit(f"requirements.lock has no {', '.join(missing)}; make it anew as its head says.")
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "requirements.txt"
        part.write_text("\n".join(entries[name] for name in names) + "\n", encoding="utf-8")
        subprocess.run([*PIP, "--require-hashes", "--no-deps", "--requirement", str(part)], check=True)


if __name__ == "__main__":
    main()
