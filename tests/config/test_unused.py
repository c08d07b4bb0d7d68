"""Settings that are not used are not accepted, and a complaint begins with the place that set the value."""

from pathlib import Path

import pytest

from diffdistill.config import load_config
from diffdistill.config.align import Align
from diffdistill.config.places import placed
from diffdistill.config.schema import Distill, Train
from diffdistill.config.unused import (
    ALIGN,
    DISTILL,
    OF_IMAGE_TEACHERS,
    OF_TEXT_TEACHERS,
    TRAIN,
    default_at,
    refuse_idle,
)
from diffdistill.errors import ConfigError, DataError, Problems

TEACHER, DMD2, PAIRS = (Train, "fashion_mnist/teacher"), (Distill, "fashion_mnist/dmd2"), (Align, "align/mapo_sdxl")
DDO, RAFT = (Train, "fashion_mnist/ddo"), (Train, "fashion_mnist/raft")
IDLE = [
    (DDO, ["loss_weight=debiased"], "loss_weight"),
    (DDO, ["noise.law=gaussian"], "noise.law"),
    (TEACHER, ["noise.dimension=9"], "noise.dimension"),
    (RAFT, ["objective.scale=2.0"], "objective.scale"),
    ((Distill, "fashion_mnist/diff_instruct_star"), ["method.reward.disagreement=0.3"], "method.reward.disagreement"),
    (TEACHER, ["data.prompts=p.txt"], "data.prompts"),
    (TEACHER, ["data.prompt_cache_gb=1.0"], "data.prompt_cache_gb"),
    (TEACHER, ["data.prompt_disk_gb=1.0"], "data.prompt_disk_gb"),
    (PAIRS, ["data.path=x", "data.workers=2"], "data.workers"),
    (TEACHER, ["evaluation.clip=x"], "evaluation.clip"),
    (TEACHER, ["evaluation.rewards=[clip]"], "evaluation.rewards"),
    (TEACHER, ["checkpoint_minutes=3"], "checkpoint_minutes"),
    (TEACHER, ["network.uvit.depth=4"], "network.uvit.depth"),
    (TEACHER, ["network.kind=uvit", "network.layers_per_block=2"], "network.layers_per_block"),
    (TEACHER, ["network.scalelong={mode: ls, kappa: 0.5}"], "network.scalelong.kappa"),
    (TEACHER, ["network.scalelong={mode: cs, start: reference}"], "network.scalelong.start"),
    (TEACHER, ["level.rho=3.0"], "level.rho"),
    (TEACHER, ["optimizer.schedule=constant", "optimizer.decay_from=0.5"], "optimizer.decay_from"),
    (DMD2, ["data.prompts=p.txt", "data.path=x"], "data.path"),
    (DMD2, ["data.prompts=p.txt", "data.split=test"], "data.split"),
    (DMD2, ["data.prompts=p.txt", "data.keep=disk"], "data.keep"),
    (DMD2, ["data.prompts=p.txt", "data.workers=2"], "data.workers"),
    (DMD2, ["student.levels=[2.0]", "student.sigma_init=3.0"], "student.sigma_init"),
    (DMD2, ["student.timesteps=[999]", "student.levels=[2.0]"], "student.levels"),
    (DMD2, ["student.training_input=noised_data"], "student.training_input"),
    (DMD2, ["critic.level.shift=2.0"], "critic.level.shift"),
    (DMD2, ["critic.optimizer.decay_from=0.5"], "critic.optimizer.decay_from"),
    (DMD2, ["method.adversarial.critic_weight=0.5"], "method.adversarial.critic_weight"),
    (DMD2, ["evaluation.reference_split=test"], "evaluation.reference_split"),
    (DMD2, ["evaluation.clip=x"], "evaluation.clip"),
    (
        (Distill, "fashion_mnist/f_distill"),
        ["method.divergence=reverse_kl", "method.ratio.bins=3"],
        "method.ratio.bins",
    ),
    (
        (Distill, "fashion_mnist/diff_instruct_star"),
        ["method.guidance_scale=1.0", "method.guidance=outside"],
        "method.guidance",
    ),
    (PAIRS, ["data.path=x", "data.prompts=p.txt"], "data.prompts"),
    (PAIRS, ["data.path=x", "data.held_out_path=y", "data.held_out=0.3"], "data.held_out"),
    (PAIRS, ["data.path=x", "data.held_out_split=test"], "data.held_out_split"),
    (PAIRS, ["data.path=x", "evaluation.judged_images=8"], "evaluation.judged_images"),
    (PAIRS, ["data.path=x", "method.beta=8.0", "method.margin_scale=3.0"], "method.margin_scale"),
]


@pytest.mark.parametrize(("config", "words", "key"), IDLE, ids=[key for *_, key in IDLE])
def test_what_is_not_used_is_not_accepted(config, words, key):
    place = next(word for word in words if word.startswith(key.rpartition(".")[0] if "{" in word else f"{key}="))
    with pytest.raises(Problems, match=f"'{key}' is not used") as caught:
        load_config(*config, words)
    assert str(caught.value).splitlines()[-1].startswith(f"override '{place}': '{key}' is not used")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DMD2, ["student.levels=[2.0]"]),  # the recipe's sigma_init is below
        (DMD2, ["data.prompts=p.txt"]),
        (DMD2, ["level.law=uniform"]),
        (DMD2, ["student.optimizer.schedule=constant"]),
        (DMD2, ["student.training_input=backward_simulation"]),  # its default
        (TEACHER, ["network.kind=uvit"]),
        (TEACHER, ["checkpoint_minutes=3", "checkpoint_every=0"]),
        (DMD2, ["evaluation.at_end=false", "evaluation.num_images=12"]),  # a thing that is off is no mistake
    ],
)
def test_what_a_later_choice_makes_idle_is_accepted(config, words):
    load_config(*config, words)


def test_the_settings_of_a_run_load_again(tmp_path: Path):
    resolved = load_config(*DMD2, ["student.levels=[2.0]", "student.optimizer.schedule=constant"])
    assert resolved.config.student.optimizer.decay_from == 0.2  # of the recipe: it stands in the file, and is idle
    file = tmp_path / "config.yaml"
    file.write_text(resolved.text_yaml, encoding="utf-8")
    assert load_config(Distill, str(file)).config == resolved.config
    with pytest.raises(Problems, match=r"'student\.sigma_init' is not used beside"):
        load_config(Distill, str(file), ["student.sigma_init=7.0"])


def test_both_in_one_file_are_refused_with_the_line(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: fashion_mnist/dmd2\nstudent:\n  levels: [2.0]\n  sigma_init: 7.0\n", encoding="utf-8")
    with pytest.raises(Problems, match=r"mine.yaml:4: 'student.sigma_init' is .* \(student.levels: .*mine.yaml:3\)"):
        load_config(Distill, str(file))


@pytest.mark.parametrize(
    ("texts", "words", "key"),
    [
        (False, ["data.prompts=p.txt"], "data.prompts"),
        (False, ["student.lora={rank: 4}"], "student.lora.rank"),
        (False, ["student.timesteps=[9]"], "student.timesteps"),
        (True, ["student.sigma_init=3.0"], "student.sigma_init"),
        (True, ["data.horizontal_flip=true"], "data.horizontal_flip"),
    ],
)
def test_what_another_kind_of_teacher_uses_is_refused(texts, words, key):
    with pytest.raises(Problems, match=f"'{key}' is not used with a"):
        refuse_idle(load_config(*DMD2, words), texts)
    refuse_idle(load_config(*DMD2), texts)


@pytest.mark.parametrize(
    ("config", "rules"), [(TEACHER, TRAIN), (DMD2, (*DISTILL, *OF_IMAGE_TEACHERS, *OF_TEXT_TEACHERS)), (PAIRS, ALIGN)]
)
def test_the_table_names_settings_that_there_are(config, rules):
    """Of every method and section: a rule for a key that was renamed would refuse nothing."""
    schema = str(config[0].model_json_schema())
    for key in {name for rule in rules for name in (*rule.keys, *rule.by)}:
        assert f"'{key.rpartition('.')[2]}': " in schema, key


def test_defaults_are_those_of_the_place():
    config = load_config(*DMD2).config
    assert default_at(config, "level.u_max") == 0.8
    assert default_at(config, "critic.level.u_max") == 1.0
    assert default_at(config, "student.regression.steps") == 1000
    assert default_at(config, "no.such") is None


def test_a_complaint_made_elsewhere_begins_with_the_place():
    resolved = load_config(*DMD2, ["student.sigma_init=99.0", "data.path=my set", "evaluation.features=pixels"])

    def told(error):
        return str(placed(error, resolved.config, resolved.origins))

    assert told(ConfigError("lower student.sigma_init")).startswith("override 'student.sigma_init=99.0': lower")
    assert told(DataError("my set has no labels")).startswith("override 'data.path=my set': my set")
    assert told(DataError("my settings are lost")) == "my settings are lost"
    assert told(ConfigError("the teacher's highest is 80")) == "the teacher's highest is 80"
    assert told(ConfigError("teacher 'x' is none")).startswith("configs/fashion_mnist/_base.yaml:4: teacher 'x'")
    assert isinstance(placed(DataError("my set"), resolved.config, resolved.origins), DataError)


def test_a_rule_of_several_settings_is_told_at_the_one_laid_over_the_others():
    with pytest.raises(ConfigError, match=r"^override 'micro_batch_size=100': micro_batch_size is 100 and train"):
        load_config(*DMD2, ["micro_batch_size=100"])
    with pytest.raises(ConfigError, match=r"^override 'method.adversarial=null': divergence 'jensen_shannon' needs"):
        load_config(Distill, "fashion_mnist/f_distill", ["method.adversarial=null"])
