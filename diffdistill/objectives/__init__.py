"""What `train` minimises, a file each: the settings of an objective; its task is in `training.tasks.by_objective`.

>>> OBJECTIVES.names()[:3], OBJECTIVES.get("denoising")().name
(('consistency', 'ddo', 'denoising'), 'denoising')
"""

from diffdistill.objectives.base import Objective
from diffdistill.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    Objective,
    "diffdistill.objectives",
    "OBJECTIVE",
    name_of=lambda objective: objective.registered_name(),
)
