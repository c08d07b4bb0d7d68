"""The methods of distillation, a file each: which choices, and where they depart from their paper.

>>> METHODS.names()[:3]
('consistency', 'diff_instruct', 'diff_instruct_pp')
>>> METHODS.get("sid")(alpha=0.5).choices().form
'fisher'
"""

from diffdistill.methods.base import Distillation
from diffdistill.registry import Registry

METHODS: Registry[type[Distillation]] = Registry(
    "method", Distillation, "diffdistill.methods", "METHOD", name_of=lambda method: method.registered_name()
)
