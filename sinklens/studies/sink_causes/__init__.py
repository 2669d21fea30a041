"""Why a head sinks: what makes its margin, and what the sink does to its output."""
