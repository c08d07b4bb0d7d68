"""Sharded text-to-image networks: distilled whole and by adapters on one frozen network, and aligned."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

import text_world
from sharded_runs import FSDP
from test_sharded_updates import close, compared
from tiny_text import pair_folder

from diffdistill.config.align import Align
from diffdistill.data.pairs import load_pairs
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.training.device import Device
from diffdistill.training.tasks.align import AlignTask

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = text_world.world(tmp_path_factory.mktemp("text"))
    pair_folder(made / "pairs")
    return made


@pytest.mark.parametrize("more", [{}, text_world.LORA, text_world.LORA | {"gradient_checkpointing": True}])
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_student_of_texts(folder, tmp_path, kind, more):
    config = text_world.settings(folder, kind, max_train_steps=20, **FSDP, **more)
    worst, sharded = compared(lambda: text_world.task(config), tmp_path / "ranks")
    assert (sharded == 0) == ("critic" in more)  # what is trained of adapters is small, and whole
    close(worst)


@pytest.mark.parametrize("method", ["mapo", "diffusion_dpo"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_aligning(folder, tmp_path, method, lora):
    config = Align(
        output_dir="unused", model=str(folder / "sd"), data={"path": str(folder / "pairs")}, method={"name": method},
        lora=lora, max_train_steps=20, train_batch_size=4, micro_batch_size=1, **FSDP,
    )  # fmt: skip

    def make():
        return AlignTask(config, load_pipeline(config.model), load_pairs(config.data.path), Device("no"))

    worst, sharded = compared(make, tmp_path / "ranks")
    assert (sharded == 0) == (lora is not None)
    close(worst)
