"""Runs that read texts, and alignment, on several processes against the same run on one."""

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import text_world
from ranks import ranks
from same_run import distances, doubled, in_double, trained
from tiny_text import captioned_folder, pair_folder, stable_diffusion

from diffdistill.config.align import Align
from diffdistill.data.pairs import load_pairs
from diffdistill.pipelines.text import adapter
from diffdistill.training.device import Device
from diffdistill.training.tasks.align import AlignTask

pytestmark = pytest.mark.dist

STEPS = 3
ADVERSARIAL = {"adversarial": {"weight": 0.1, "r1": 0.1}}
TEXTS = {
    "adapters, images": {"method": "f_distill", "images": True, "options": ADVERSARIAL, **text_world.LORA},
    "all weights, prompts, 4 steps": {"method": "sid", "student": {"steps": 4}, "micro_batch_size": 2},
}
PAIRS = {
    "mapo": {"method": {"name": "mapo"}, "micro_batch_size": 2},
    "mapo, adapters": {"method": {"name": "mapo"}, "lora": {"rank": 2}, "data": {"horizontal_flip": True}},
    "dpo": {"method": {"name": "diffusion_dpo"}},
    "dpo, robust": {"method": {"name": "diffusion_dpo", "robust_beta": 0.3}, "micro_batch_size": 2},
    "mapo, weights move in the pass": {
        "method": {"name": "mapo"}, "update_in_backward": True, "optimizer": {"max_grad_norm": None},
    },
}  # fmt: skip
# One process in parts of one image is 3e-4 from itself whole, where the first gap of SiD is of nearly equal networks.
FEW = {"first": 5e-4, "gradient": 1e-3, "weights": 1e-5}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = tmp_path_factory.mktemp("texts")
    stable_diffusion(made / "sd")
    captioned_folder(made / "images")
    (made / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(8)))
    pair_folder(made / "pairs")
    return made


def texts_task(world, name):
    return text_world.task(text_world.settings(world, **TEXTS[name] | {"train_batch_size": 5}))


def pairs_task(world, name):
    more = dict(PAIRS[name])
    data = {"path": str(world / "pairs")} | more.pop("data", {})
    given = {"output_dir": "unused", "model": str(world / "sd"), "train_batch_size": 5, "data": data}
    config = Align.model_validate(given | more)
    return AlignTask(config, adapter.load_pipeline(config.model), load_pairs(config.data.path), Device("no"))


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("name", [*TEXTS, *PAIRS])
def test_the_run_of_one(world, tmp_path, name, double):
    make = texts_task if name in TEXTS else pairs_task

    def work(_rank):
        if double:
            adapter.load_whole = doubled(adapter.load_whole)
        with in_double() if double else nullcontext():
            return trained(lambda: make(world, name), STEPS)

    alone, shared = ranks(work, 1, tmp_path / "1")[0], ranks(work, 2, tmp_path / "2")
    assert all(torch.equal(value, shared[1][key]) for key, value in shared[0].items())
    worst = distances(alone, shared[0])
    bounds = dict.fromkeys(("first", "gradient", "weights"), 1e-11) if double else FEW
    assert {kind: worst[kind] for kind in bounds if worst[kind] > bounds[kind]} == {}
