"""The mathematics takes plain dataclasses: it loads no schema, and the settings of a config become them by name."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import diffdistill
from diffdistill.config import schema
from diffdistill.matching import settings
from diffdistill.methods import METHODS, base
from diffdistill.process import Level
from diffdistill.rewards.term import RewardSettings
from diffdistill.section import plain

PACKAGE = Path(diffdistill.__file__).parent
MATHEMATICS = [
    PACKAGE / "process.py",
    PACKAGE / "losses.py",
    PACKAGE / "divergences.py",
    *sorted((PACKAGE / "matching").glob("*.py")),
]
HIGHER = ("config", "methods", "section", "optimizers", "rewards", "training", "pipelines", "evaluation", "cli")


def imports(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", MATHEMATICS, ids=lambda file: file.name)
def test_the_mathematics_imports_no_schema_and_nothing_above_it(file):
    for name in imports(file):
        assert not name.startswith("pydantic")
        assert not name.startswith(tuple(f"diffdistill.{room}" for room in HIGHER)), name


@pytest.mark.parametrize("name", ["config.schema", "methods", "divergences", "matching.settings"])
def test_settings_are_known_without_torch(name):
    code = f"import diffdistill.{name}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (schema.Level(), Level),
        (base.Adversarial(), settings.Adversarial),
        (base.Ratio(), settings.Ratio),
    ],
)
def test_the_plain_settings_have_the_fields_and_the_defaults_of_their_section(section, kind):
    assert plain(section, kind) == kind()
    assert {field.name for field in fields(kind)} == type(section).model_fields.keys() - {"optimizer"}


def test_values_are_handed_on():
    level = {"law": "shifted", "mean": 1.0, "std": 2.0, "sigma_min": 3.0, "sigma_max": 4.0, "rho": 5.0}
    level |= {"u_min": 0.25, "u_max": 0.5, "shift": 6.0}
    assert plain(schema.Level(**level), Level) == Level(**level)
    reward = {"name": "a", "sum": None, "weight": 1.0, "class_prompts": ("b",), "batch_size": 2}
    assert plain(base.Reward(**reward), RewardSettings) == RewardSettings(**reward)
    adversarial = {"weight": 1.0, "features": "critic", "taps": ("a", "b"), "critic_weight": 2.0, "r1": 3.0}
    method = METHODS.get("uni_instruct")(
        divergence="alpha:2", level_weight="expansion", guidance_scale=2.0, detach_ratio=True, critic_warmup=0.1,
        fisher_warmup=0.3, adversarial=adversarial, ratio={"clip": (0.5, 2.0), "bins": 3, "decay": 0.5},
    )  # fmt: skip
    assert method.choices() == settings.Choices(
        "fisher", divergence="alpha:2", level_weight="expansion", alpha=0.5, normalize=True, detach_ratio=True,
        adversarial=settings.Adversarial(**adversarial), ratio=settings.Ratio((0.5, 2.0), 3, 0.5), guidance_scale=2.0,
        critic_warmup=0.1, fisher_warmup=0.3,
    )  # fmt: skip


# What makes each method the paper's, at its defaults; what is not named is the default of `Choices`.
ROWS = {
    "diff_instruct": settings.Choices("score_gap", level_weight="none"),
    "diff_instruct_pp": settings.Choices("score_gap", level_weight="none", guidance_scale=2.0),
    "diff_instruct_star": settings.Choices("fisher", alpha=1.0, level_weight="pseudo_huber", guidance_scale=2.0),
    "dmd2": settings.Choices("score_gap", adversarial=settings.Adversarial()),
    "f_distill": settings.Choices(
        "score_gap", divergence="jensen_shannon", normalize=True, adversarial=settings.Adversarial(),
        ratio=settings.Ratio(),
    ),
    "sid": settings.Choices("fisher", alpha=1.0),
    "sim": settings.Choices("fisher", alpha=1.0, level_weight="pseudo_huber"),
    "uni_instruct": settings.Choices(
        "fisher", divergence="forward_kl", normalize=True, adversarial=settings.Adversarial(), ratio=settings.Ratio(),
        critic_warmup=0.05, fisher_warmup=0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, method in METHODS.rows().items() if issubclass(method, base.Method)])
def test_every_method_is_its_row_of_the_table(name):
    scale = ROWS[name].guidance_scale
    assert METHODS.get(name)(guidance_scale=scale).choices() == ROWS[name]


def test_guidance_outside_is_a_choice():
    for name in ("diff_instruct_pp", "diff_instruct_star"):
        method = METHODS.get(name)(guidance="outside", guidance_scale=3.0)
        assert method.choices().guidance == "outside"
