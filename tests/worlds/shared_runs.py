"""Runs that several processes share: a small task of every method, of teachers, of texts and of pairs."""

from diffusers import UNet2DModel
from runs import data
from torch import manual_seed

from diffdistill.config.schema import Distill, Train
from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM
from diffdistill.training.device import Device
from diffdistill.training.tasks.by_objective import TASKS
from diffdistill.training.tasks.ddo import DDOTask
from diffdistill.training.tasks.distill import student_task

BATCH = 5  # rows of 2 processes: 2 and 3; of 3: 1, 2 and 2; of 4: 1, 1, 1 and 2
COMMON = {"output_dir": "unused", "train_batch_size": BATCH, "log_every": 1, "sample_every": 0}
NETWORK = {"block_out_channels": (8,), "norm_num_groups": 4, "attention_head_dim": 8, "attention_levels": ()}

DISTILLED = {
    "diff_instruct": {"method": {"name": "diff_instruct", "guidance_scale": 2.0}},
    "diff_instruct_pp": {
        "method": {"name": "diff_instruct_pp", "guidance_scale": 2.0, "guidance": "outside"},
        "micro_batch_size": 2,
    },
    "diff_instruct_star": {"method": {"name": "diff_instruct_star", "guidance_scale": 3.0}, "student": {"steps": 2}},
    "dmd2": {
        "method": {"name": "dmd2", "adversarial": {"features": "critic", "r1": 0.1, "weight": 0.1}},
        "critic": {"updates_per_step": 5},
        "micro_batch_size": 2,
    },
    "f_distill": {
        "method": {"name": "f_distill", "adversarial": {"r1": 0.1, "weight": 0.1}, "ratio": {"bins": 3}},
        "student": {"steps": 4},
    },
    "f_distill, parts and noised data": {
        "method": {"name": "f_distill", "divergence": "forward_kl"},
        "student": {"steps": 4, "training_input": "noised_data"},
        "data": {"horizontal_flip": True},
        "micro_batch_size": 2,
    },
    "diff_instruct, smooth": {
        "method": {"name": "diff_instruct", "smoothness": {"every": 1}},
        "micro_batch_size": 2,
    },
    "sid": {"method": {"name": "sid"}, "micro_batch_size": 1},
    "sida": {"method": {"name": "sid", "adversarial": {"weight": 0.1}}},
    "sida, mixed": {"method": {"name": "sid", "adversarial": {"weight": 0.1, "mix": 1.0}}},
    "sim": {"method": {"name": "sim"}},
    "sim, a weight a level": {"method": {"name": "sim", "level_weight": "dmd_level"}, "micro_batch_size": 2},
    "uni_instruct": {"method": {"name": "uni_instruct"}, "micro_batch_size": 2},
    "consistency": {
        "method": {"name": "consistency", "intervals": (2, 4), "guidance_scale": 2.0},
        "student": {"steps": 2, "sigma_init": 80.0},
        "micro_batch_size": 2,
    },
    "scm": {"method": {"name": "scm"}, "student": {"sigma_init": 80.0}, "micro_batch_size": 2},
    "consistency first and beside": {
        "method": {"name": "sid", "consistency": {"weight": 0.1}},
        "student": {
            "sigma_init": 80.0,
            "consistency": {"steps": 4, "objective": {"name": "consistency", "intervals": (2, 4)}},
        },
    },
    "regression first": {
        "method": {"name": "dmd2", "adversarial": None},
        "student": {"steps": 3, "regression": {"steps": 8, "pairs": 15, "solver_steps": 4, "muon": {}}},
    },
}
TAUGHT = {
    "train": {},
    "train, consistency": {"objective": {"name": "consistency", "intervals": (2, 4)}},
    "train, scm": {"objective": {"name": "scm"}},
    "train, heavy tails": {"noise": {"law": "student_t", "dimension": 3.0}},
    "train, flipped, many dropped": {"data": {"horizontal_flip": True}, "class_dropout": 0.5},
    "ddo": {"objective": {"name": "ddo", "reference_images": 10, "reference_steps": 2}, "initialize_from": "tiny"},
}


def teacher():
    """Three classes and the null class; 8x8 gray, one level."""
    manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=4,
    )  # fmt: skip
    return Denoiser(network, EDM(), null_class=3).eval()


def image_task(name, steps, **more):
    """A task of DISTILLED or TAUGHT, which is `steps` long; more: other settings."""
    length = {"max_train_steps": steps}
    if name == "ddo":  # one round of them
        more = {"evaluation": {"every": steps}, "objective": TAUGHT[name]["objective"] | {"round_steps": steps}}
        return DDOTask(Train(**COMMON | length | TAUGHT[name] | more), data(), Device("no"), teacher())
    if name in TAUGHT:
        config = Train(**COMMON | length | TAUGHT[name], network=NETWORK)
        return TASKS[config.objective.name](config, data(), Device("no"))
    return student_task(Distill(**COMMON | length | DISTILLED[name] | more), teacher(), data(), Device("no"))
