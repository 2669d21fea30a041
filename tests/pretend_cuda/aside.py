"""Work on the CPU that the pretend GPU need not see."""

from torch.utils._python_dispatch import _disable_current_modes

aside = _disable_current_modes
"""``@aside()``: slow oracles run at full speed in a process that pretends, and as ever elsewhere."""
