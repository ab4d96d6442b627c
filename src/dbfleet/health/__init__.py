"""How the servers are, as this process sees them, and which of them may be asked.

Process-wide, since every thread sees the same servers. No thread, no I/O: what reads
report, and what those that wait in vain find out, is all that is known.
"""

from dbfleet.health import drain, fallback, load, silence
from dbfleet.health.breaker import FIRST_PAUSE_S, MAX_PAUSE_S, Breaker, breaker
from dbfleet.health.fallback import falling_back

__all__ = [
    "FIRST_PAUSE_S",
    "MAX_PAUSE_S",
    "Breaker",
    "breaker",
    "drain",
    "fallback",
    "falling_back",
    "load",
    "silence",
]
