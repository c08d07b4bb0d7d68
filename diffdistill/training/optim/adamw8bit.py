"""AdamW with moments of 8 bits (2110.02861), bitsandbytes' own: a quarter of AdamW's state.

Of tensors of fewer than 4096 numbers the moments stay float32. A checkpoint has the numbers as they are, a byte each,
and a scale for every 256 of them; the table that gives bytes their values is the same for all, and made anew.
"""

from typing import Any

import torch
from torch import nn

from diffdistill.explain import without_package
from diffdistill.optimizers import Optimizer

TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}  # signed and unsigned, by the names in a state


def build(parameters: list[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    """ConfigError where bitsandbytes is not installed, or has nothing for this machine."""
    made: torch.optim.Optimizer = _kind()(
        parameters, lr=settings.learning_rate, betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay
    )
    return made


def _kind() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception as error:  # its libraries may not fit the machine, which comes as any kind
        begins = "optimizer.name=adamw8bit is bitsandbytes'"
        raise without_package(begins, error, "quant", "use adamw or adafactor") from error

    class Saved(AdamW8bit):
        """Its state as plain tensors: a checkpoint has one file of them, without nesting and without shared memory."""

        def state_dict(self) -> dict[str, Any]:
            found = torch.optim.Optimizer.state_dict(self)
            state = {
                index: {name: value for name, value in slots.items() if name not in TABLES}
                for index, slots in found["state"].items()
            }
            return found | {"state": state}

        def load_state_dict(self, state_dict: Any, move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for weight, state in self.state.items():
                state["step"] = int(state["step"])  # which a checkpoint has as a tensor
                if state["state1"].dtype == torch.uint8:
                    state |= {name: self.name2qmap[table].to(weight.device) for name, table in TABLES.items()}

    return Saved
