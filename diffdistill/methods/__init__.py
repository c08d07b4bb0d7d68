"""The distribution-matching methods, a file each: which choices, and where they depart from their paper.

>>> METHODS.names()[:3]
('diff_instruct', 'diff_instruct_pp', 'diff_instruct_star')
>>> METHODS.get("sid")(alpha=0.5).choices().form
'fisher'
"""

from diffdistill.methods.base import Method
from diffdistill.registry import Registry

METHODS: Registry[type[Method]] = Registry(
    "method", Method, "diffdistill.methods", "METHOD", name_of=lambda method: method.registered_name()
)
