"""What safety costs: seconds of a save and bytes that it reads and writes, beside the bare writing of the tensors."""

import time
from pathlib import Path

import torch
from counts import counting, tries
from harness import spawn_function, wait

MOST = 7  # written once; read for its digest, to verify it, and with it those that are kept, before old ones go


def _bytes() -> tuple[int, int]:
    """Read and written by this process so far, through whichever cache."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


def _measured(function, out: Path) -> None:
    (read, wrote), began = _bytes(), time.perf_counter()
    function()
    seconds, (read_after, wrote_after) = time.perf_counter() - began, _bytes()
    with out.open("a") as stream:
        stream.write(f"{seconds} {read_after - read} {wrote_after - wrote}\n")


def test_a_save(shop):
    """The bundled teacher with the moments of Adam: three times its 1.5 M parameters."""
    from safetensors.torch import save_file

    from diffdistill import load_model
    from diffdistill.training.store import CheckpointStore, tensors_of

    home = shop.folder("cost")
    network = load_model("builtin:fashion_mnist_teacher").network
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    parts = {"network": network, "optimizer": optimizer}
    size = sum(t.nbytes for part in parts.values() for t in tensors_of(part).values())
    store, step = CheckpointStore(home / "checkpoints", 2), iter(range(1, 1000))

    def bare() -> None:
        for name, part in parts.items():
            save_file(tensors_of(part), home / f"{name}.safetensors")

    def safe() -> None:
        store.save(next(step), parts, {"seconds": 0.0, "threads": 1, "torch": torch.__version__})

    def both() -> None:
        for _ in range(tries(12, 4)):
            _measured(bare, home / "bare.txt")
            _measured(safe, home / "safe.txt")

    assert wait(spawn_function(both)) == 0
    right = f"at most {MOST} bytes read or written a byte of tensors"
    with counting("cost", "a checkpoint of 1.5 M parameters with Adam", right) as counts:
        rows = {name: _rows(home / f"{name}.txt") for name in ("bare", "safe")}
        middle = {name: sorted(row[0] for row in found)[len(found) // 2] for name, found in rows.items()}
        reads, writes = rows["safe"][-1][1:]
        counts.facts |= {
            "tensors in MB": round(size / 1e6, 1), "bare save in ms": round(1e3 * middle["bare"]),
            "save in ms": round(1e3 * middle["safe"]), "bytes written per byte": round(writes / size, 2),
            "bytes read per byte": round(reads / size, 2),
        }  # fmt: skip
        for _, read, wrote in rows["safe"]:
            moved = (read + wrote) / size
            counts.judge(None if moved <= MOST else f"{moved:.2f} bytes a byte", "saved", "a save")


def _rows(file: Path) -> list[tuple[float, int, int]]:
    lines = [line.split() for line in file.read_text().splitlines()]
    return [(float(seconds), int(read), int(wrote)) for seconds, read, wrote in lines]
