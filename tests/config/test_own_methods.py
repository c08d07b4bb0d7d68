"""A method and a divergence of the user's own, from a file: trained with like those of the package."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_teacher

from diffdistill.cli import main
from diffdistill.config import load_config
from diffdistill.config.schema import Distill
from diffdistill.divergences import get_divergence
from diffdistill.errors import ConfigError
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods import METHODS
from diffdistill.methods.base import Method
from diffdistill.process import Level, LevelLaw
from diffdistill.registry import allow_code
from diffdistill.training.optim.updater import Updater

FILE = '''"""Reverse KL beside a setting of its own."""
from typing import ClassVar, Literal

from diffdistill.divergences import Divergence
from diffdistill.matching.level_weights import LevelWeight
from diffdistill.methods.base import Adversarial, Method

CUBE_ROOT = Divergence(
    name="cube_root",
    weight=lambda log_r: (log_r / 3).exp(),
    weight_slope=lambda log_r: (log_r / 3).exp() / 3,
    adversarial=lambda log_r: -3 * (log_r / 3).exp(),
)


def power(exponent=2.0):
    return Divergence("power", lambda l: (exponent * l).exp(), lambda l: l, lambda l: l)


class Own(Method):
    """Reverse KL, weight 1."""

    form: ClassVar[str] = "score_gap"
    name: Literal["own"] = "own"
    divergence: str = "reverse_kl"
    alpha: float = 0.25
    adversarial: Adversarial | None = Adversarial(weight=0.5)


METHOD = Own


def by_number(x0, teacher_x0, critic_x0):
    return x0.new_full((len(x0), 1, 1, 1), 3.0)


TRIPLE = LevelWeight("triple", "3", of_images=by_number)
def descent(parameters, settings):
    import torch

    return torch.optim.SGD(parameters, lr=settings.learning_rate)


FISHER_ONLY = LevelWeight("fisher_only", "1", forms=("fisher",))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "x.yaml").write_text("output_dir: out\nmethod:\n  name: mine.py:Own\n", encoding="utf-8")
    allow_code()
    yield "x.yaml"
    allow_code(False)


def test_a_method_of_ones_own_file_is_a_method(own):
    resolved = load_config(Distill, own, ["method.alpha=0.75", "method.adversarial.r1=0.1"])
    method = resolved.config.method
    assert isinstance(method, Method)
    assert (method.name, method.alpha, method.adversarial.weight) == ("mine.py:Own", 0.75, 0.5)
    choices = method.choices()
    assert (choices.form, choices.alpha, choices.adversarial.r1) == ("score_gap", 0.75, 0.1)
    Path("again.yaml").write_text(resolved.text_yaml, encoding="utf-8")
    again = load_config(Distill, "again.yaml")
    assert (again.config.method.model_dump(), again.sha256) == (method.model_dump(), resolved.sha256)


def test_its_keys_are_known(own):
    with pytest.raises(ConfigError) as caught:
        load_config(Distill, own, ["method.alpa=1"])
    assert str(caught.value) == ("override 'method.alpa=1': unknown key 'method.alpa' (did you mean 'method.alpha'?)")


def test_code_is_run_only_where_it_is_allowed(own):
    allow_code(False)
    for more in ([], ["method={name: f_distill, divergence: 'mine.py:CUBE_ROOT'}"]):
        with pytest.raises(ConfigError, match="is code, which would be run: say --allow-code if you trust the file"):
            load_config(Distill, own, more)


def test_what_is_no_method_is_refused(own):
    with pytest.raises(ConfigError, match=r"'mine\.py:power' is no method; it must be a diffdistill\.methods\.base"):
        load_config(Distill, own, ["method.name=mine.py:power"])
    with pytest.raises(ConfigError, match=r"'mine\.py' defines no 'Nothing'"):
        load_config(Distill, own, ["method.name=mine.py:Nothing"])


def test_a_file_of_the_environment_adds_its_method_by_name(own, tmp_path):
    command = [sys.executable, "-m", "diffdistill", "config", "show", "distill", "fashion_mnist/dmd2"]
    words = ["--set", "method={name: own, alpha: 0.5}"]
    plugins = os.environ | {"DIFFDISTILL_PLUGINS": str(tmp_path / "mine.py")}
    done = subprocess.run([*command, *words], env=plugins, capture_output=True, text=True, check=True)
    assert "  name: own" in done.stdout
    keys = [*command[:4], "keys", "distill"]
    done = subprocess.run(keys, env=plugins, capture_output=True, text=True, check=True)
    assert "# method: Reverse KL, weight 1.\nmethod.name: own\n" in done.stdout


@pytest.mark.parametrize(("name", "called"), [("CUBE_ROOT", "cube_root"), ("power", "power")])
def test_a_divergence_of_ones_own_file_weighs(own, name, called):
    words = [f"method={{name: f_distill, divergence: 'mine.py:{name}'}}"]
    choices = load_config(Distill, own, words).config.method.choices()
    assert choices.divergence == f"mine.py:{name}"
    assert get_divergence(choices.divergence).name == called


def test_what_is_no_divergence_is_refused(own):
    with pytest.raises(ConfigError, match=r"'mine\.py:FILE' is no divergence|defines no 'FILE'"):
        load_config(Distill, own, ["method={name: f_distill, divergence: 'mine.py:FILE'}"])
    with pytest.raises(ConfigError, match=r"'mine\.py:Own' is no divergence; it must be a diffdistill\.divergences"):
        load_config(Distill, own, ["method={name: f_distill, divergence: 'mine.py:Own'}"])


def test_an_unknown_divergence_is_refused_where_it_is_set(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: fashion_mnist/f_distill\nmethod:\n  name: f_distill\n  divergence: nonsense\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:4: .*divergence.*'nonsense' is not known; allowed are"):
        load_config(Distill, file)


@pytest.mark.parametrize("divergence", ["forward_kl", "mine.py:CUBE_ROOT"])
def test_a_method_that_weighs_by_a_ratio_and_makes_none_is_refused_with_the_config(own, divergence):
    with pytest.raises(ConfigError, match="needs a density ratio and the method does not say how logits become one"):
        load_config(Distill, own, [f"method.divergence={divergence}"])
    with pytest.raises(ConfigError, match="needs a density ratio and there is no discriminator"):
        load_config(Distill, own, [f"method.divergence={divergence}", "method.adversarial=null"])


def test_a_level_weight_of_ones_own_file_weighs(own):
    words = ["method={name: dmd2, adversarial: null, level_weight: 'mine.py:TRIPLE'}"]
    choices = load_config(Distill, own, words).config.method.choices()
    law, teacher, critic = LevelLaw(Level("karras")), tiny_teacher(0), tiny_teacher(1)
    x0 = torch.randn(2, 1, 8, 8)
    gradients = []
    for row in (choices, replace(choices, level_weight="none")):
        torch.manual_seed(0)
        step = DistributionMatching(row, teacher, critic, law, law)
        gradients.append(step.student_gradient(x0, torch.tensor([0, 1]), progress=0.5)[0])
    assert gradients[1].abs().min() > 0
    torch.testing.assert_close(gradients[0], 3 * gradients[1])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mine.py:CUBE_ROOT", r"'mine\.py:CUBE_ROOT' is no level weight; it must be a diffdistill\.matching"),
        ("mine.py:FISHER_ONLY", "weighs the squared score gap of a Fisher form"),
        ("fisher", "'method.level_weight' is 'fisher'; it must be one of 'none', 'dmd'"),
    ],
)
def test_what_is_no_level_weight_of_the_form_is_refused(own, name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(Distill, own, [f"method={{name: dmd2, level_weight: '{name}'}}"])


def test_an_optimiser_of_ones_own_file_moves_the_weights(own):
    words = ["student.optimizer={name: 'mine.py:descent', learning_rate: 0.5, max_grad_norm: null}"]
    settings = load_config(Distill, own, words).config.student.optimizer
    weight = torch.nn.Parameter(torch.ones(3))
    updater = Updater("student", [weight], settings, 10)
    weight.grad = torch.tensor([0.0, 1.0, -2.0])
    updater.step(0)
    assert weight.tolist() == [1.0, 0.5, 2.0]


def test_what_is_no_optimiser_is_refused(own):
    with pytest.raises(ConfigError, match=r"'mine\.py:TRIPLE' is no optimiser; it must be a function of \(parameters"):
        load_config(Distill, own, ["student.optimizer.name=mine.py:TRIPLE"])
    with pytest.raises(ConfigError, match=r"'sgd'; it must be one of 'adamw', 'adamw8bit' or 'adafactor'"):
        load_config(Distill, own, ["student.optimizer.name=sgd"])


def test_a_wrong_divergence_is_told_at_once_and_without_torch(capsys):
    words = ["distill", "fashion_mnist/f_distill", "method.divergence=jensen_shanon"]
    assert main(words) == 2
    assert "did you mean 'jensen_shannon'?" in capsys.readouterr().err


def test_choices_that_exclude_each_other_are_told_with_the_config():
    words = ["method.divergence=forward_kl", "method.adversarial=null"]
    with pytest.raises(ConfigError, match="needs a density ratio and there is no discriminator"):
        load_config(Distill, "fashion_mnist/f_distill", words)


def test_what_a_plug_in_of_the_environment_does_wrong_is_told_of_it(tmp_path, monkeypatch):
    (tmp_path / "three.py").write_text("METHOD = 3\n", encoding="utf-8")
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(tmp_path / "three.py"))
    with pytest.raises(
        ConfigError, match=r"METHOD in '.*three.py' is 3, and a method must be .* out of DIFFDISTILL_PLUGINS"
    ):
        METHODS.names()
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(tmp_path / "gone.py"))
    with pytest.raises(ConfigError, match="DIFFDISTILL_PLUGINS names a plug-in that cannot be had: the file"):
        METHODS.names()


def test_consent_is_asked_for_before_torch_is_imported(python):
    words = ["sample", "m", "--num-images", "1", "--out", "o", "--sampler", "x.py:S"]
    done = python(
        "-c", f"import sys; from diffdistill.cli import main; c = main({words}); print(c, 'torch' in sys.modules)"
    )
    assert done.out.split() == ["2", "False"]
    assert "say --allow-code" in done.err


@pytest.mark.parametrize("name", ["fashion_mnist/distill", "emoji/distill", "cifar10/edm", "sdxl/sdxl"])
def test_earlier_names_of_base_configs_still_resolve(name):
    folder = name.partition("/")[0]
    assert load_config(Distill, name).sha256 == load_config(Distill, f"{folder}/_base").sha256
