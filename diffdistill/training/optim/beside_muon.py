"""The optimisers of a start: Muon for the weights of inner layers, where it is asked for, and another for the rest."""

from torch import nn

from diffdistill.errors import ConfigError
from diffdistill.optimizers import Muon, Optimizer
from diffdistill.training.optim.muon import split_weights
from diffdistill.training.optim.updater import Updater


def updaters_of(name: str, student: nn.Module, optimizer: Optimizer, muon: Muon | None, steps: int) -> list[Updater]:
    """Updaters `name` and, with Muon, `name`_muon. ConfigError where there is no layer for it."""
    weights, rest = split_weights(student.network) if muon else ([], list(student.parameters()))  # type: ignore[arg-type]
    updaters = [Updater(name, rest, optimizer, steps)]
    if muon:
        if not weights:
            raise ConfigError(
                f"student.{name}.muon found no inner layer whose own weights are trained; set it to null (with "
                f"student.lora only the adapters are)"
            )
        updaters.append(Updater(f"{name}_muon", weights, muon, steps))
    return updaters
