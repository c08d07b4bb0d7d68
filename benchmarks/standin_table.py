"""How often a training step makes the host wait, method by method, on the stand-in for an accelerator.

    PYTHONPATH=.:tests/worlds python benchmarks/standin_table.py

A step is the second one of a tiny task, with two updates of the critic; see `tests/worlds/standin.py`.
"""

import standin  # type: ignore[import-not-found]
from standin_runs import on, updated  # type: ignore[import-not-found]

from diffdistill import machine
from diffdistill.methods import METHODS


def main() -> None:
    machine.TAKES_COPIES.add("standin")
    print("| | numbers read | tensors sent |\n|---|---|---|")
    with standin.in_use() as device:
        for kind in ("train", *METHODS.names()):
            updated(on(device, kind, "unused"))
            waits = standin.WAITS
            print(f"| {kind} | {waits.read.total()} | {waits.sent.total()} |", *waits.read, *waits.sent)


if __name__ == "__main__":
    main()
