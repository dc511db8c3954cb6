"""Python graders that attack, and what each must come to, by kind of attack.

``@SECRET@`` is a file of the host's, ``@PID@`` a process of it, ``@MARK@`` a name under which they try to leave
something there.
"""

from __future__ import annotations

from benchmarks.hostile_graders.answers import ANSWERS
from benchmarks.hostile_graders.dying import DYING
from benchmarks.hostile_graders.files import FILES
from benchmarks.hostile_graders.hostile import Hostile
from benchmarks.hostile_graders.left_behind import LEFT_BEHIND
from benchmarks.hostile_graders.network import NETWORK
from benchmarks.hostile_graders.privilege import PRIVILEGE
from benchmarks.hostile_graders.resources import RESOURCES
from benchmarks.hostile_graders.time import TIME

__all__ = ["HOSTILE", "KINDS", "LEFT_BEHIND", "Hostile"]

KINDS = {
    "time": TIME,
    "resources": RESOURCES,
    "dying": DYING,
    "network": NETWORK,
    "files": FILES,
    "privilege": PRIVILEGE,
    "answers": ANSWERS,
    "left behind": LEFT_BEHIND,
}
HOSTILE = [hostile for kind in KINDS.values() for hostile in kind]
