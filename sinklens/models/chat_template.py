"""Chat templates are programs that come with a checkpoint: each is tried out where it can do no harm."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

from sinklens.errors import ModelLoadError

SECONDS = 10
MOST_CHARACTERS = 1_000_000

# What transformers does with a template, in a process of its own with a bound on memory and time. Only whether it ends
# matters: its errors are told by the rendering proper.
_TRIAL = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except (ImportError, ValueError, OSError):
    pass
from jinja2.sandbox import ImmutableSandboxedEnvironment
given = json.load(sys.stdin)
def fail(message):
    raise ValueError(message)
env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
env.globals.update(raise_exception=fail, strftime_now=lambda form: form)
env.filters["tojson"] = lambda value, **options: json.dumps(value)
try:
    text = env.from_string(given["template"]).render(**given["values"])
except MemoryError:
    sys.exit(3)
except Exception:
    sys.exit(0)
sys.exit(3 if len(text) > given["most"] else 0)
"""


def check_chat_template(tokenizer: Any) -> None:
    """Refuse a chat template that does not end, or that writes without end.

    It is rendered once for a short conversation in a process of its own, with 10 seconds and 1 GiB of memory.

    Raises:
        ModelLoadError: One sentence with the limit that it passed.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):  # several by name: the one that is used when none is asked for
        template = template.get("default", "") if isinstance(template, dict) else ""
    marks = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token", "pad_token")}
    _check(template, json.dumps({name: None if mark is None else str(mark) for name, mark in marks.items()}))


@cache
def _check(template: str, marks: str) -> None:
    values = {"messages": [{"role": "user", "content": "Hello."}], "add_generation_prompt": True, **json.loads(marks)}
    given = json.dumps({"template": template, "values": values, "most": MOST_CHARACTERS})
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _TRIAL], input=given, text=True, capture_output=True, timeout=SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        ended = None
    if ended is None or ended not in (0, 1):  # 1: jinja2 is not there, and nothing could be tried
        what = f"takes more than {SECONDS} seconds" if ended is None else "takes more than 1 GiB"
        raise ModelLoadError(
            f"The chat template of this model {what} or writes more than {MOST_CHARACTERS:,} characters for one word, "
            'so it is not used; take template="plain" (--no-chat).'
        )
