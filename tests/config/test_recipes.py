"""The recipes in configs/, and the check that runs each of them for two steps on its own network."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
import yaml
from tiny import tiny_unet

from diffdistill import Denoiser
from diffdistill.config import load_config
from diffdistill.config.loader import configs_folder
from diffdistill.config.schema import Distill
from diffdistill.models import DhariwalUNet, SongUNet
from diffdistill.process import EDM

FILES = sorted(configs_folder().rglob("*.yaml"))
NAMES = [str(file.relative_to(configs_folder())) for file in FILES]


def parents(file):
    base = yaml.safe_load(file.read_text(encoding="utf-8")).get("base", [])
    return [file.parent / name for name in ([base] if isinstance(base, str) else base)]


def depth(file):
    return max((1 + depth(parent) for parent in parents(file)), default=0)


def test_what_a_recipe_says_is_at_most_two_files_away():
    assert [str(file) for file in FILES if depth(file) > 2] == []


def test_a_file_that_is_a_base_and_no_recipe_has_one_name():
    """What recipes of a folder share and nobody runs; it says so in its first line."""
    shared = [file for file in FILES if "recipes" in file.read_text(encoding="utf-8").partition(" share")[0][:80]]
    assert [file.name for file in shared] == ["_base.yaml"] * len(shared)
    assert {file for file in FILES if file.name == "_base.yaml"} == set(shared)


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("check_configs", configs_folder().parent / ".ci" / "check_configs.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def networks(script, tmp_path_factory):
    """The small networks of EDM's layouts, by class."""
    folder = tmp_path_factory.mktemp("networks")
    made = script.edm_cifar10(folder / "cifar10"), script.edm_imagenet64(folder / "imagenet64")
    return {type(model.network).__name__: model for model in map(Denoiser.from_pretrained, made)}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_recipe_starts_from_a_known_network(script, file):
    verb = script.verb_of(file)
    config = load_config(script.SETTINGS[verb], file).config
    assert script.teacher_of(file, verb, config).network
    # Averages remember by images, so that another batch, or more processes, leave them as they are.
    average = config if verb == "train" else getattr(config, "student", None)
    assert verb == "align" or (average.ema_decay is None and average.ema_half_life_images > 0)
    # No GPU holds a pass of so many images.
    parts = getattr(config, "micro_batch_size", None)
    assert config.train_batch_size < 512 or parts is not None


def test_f_distill_runs_on_the_network_of_its_teacher_in_parts(script):
    recipe, verb, network, parts, _ = script.check(configs_folder() / "cifar10" / "f_distill.yaml").split()
    assert (recipe, verb, network, parts) == ("cifar10/f_distill.yaml", "distill", "SongUNet", "2")


def test_a_network_of_another_class_is_refused(script, monkeypatch):
    def other(folder):
        Denoiser(tiny_unet(10, 3, 32), EDM()).save_pretrained(folder, role="teacher")
        return folder

    file = configs_folder() / "cifar10" / "sid.yaml"
    name = "models/edm-cifar10-32x32-cond-vp"
    monkeypatch.setitem(script.TEACHERS, name, script.Teacher("SongUNet", other, ((32, 32, 3), 10)))
    with pytest.raises(SystemExit, match="is for a SongUNet, and a UNet2DModel was trained"):
        script.check(file)


def test_a_recipe_of_an_unknown_teacher_is_refused(script, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("output_dir: out\nteacher: someone/something\nmethod: {name: sid}\n")
    with pytest.raises(SystemExit, match="starts from 'someone/something', and of that no small one is known"):
        script.check(file)


def test_heads_on_cifar10_read_the_encoder_at_three_resolutions(networks):
    # 2502.15681, table 5: heads at 32, 16 and 8 pixels.
    config = load_config(Distill, "cifar10/f_distill").config
    model, taps = networks["SongUNet"], config.method.adversarial.taps
    x, sigma = torch.zeros(1, 3, 32, 32), torch.ones(1)
    features = model.features(x, sigma, torch.zeros(1, dtype=torch.int64), taps)
    assert [f.shape[-1] for f in features] == [32, 16, 8]


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(SongUNet, {"channel_mult": [2, 2, 2], "label_dim": 10, "augment_dim": 9}), (DhariwalUNet, {"label_dim": 1000})],
)
def test_the_small_networks_have_the_layers_labels_and_dropout_of_the_public_ones(networks, cls, settings):
    """So what a recipe says of layers holds for the network that it is for."""
    small = networks[cls.__name__].network
    with torch.device("meta"):
        public = cls(**settings, num_class_embeds=settings["label_dim"])

    def layers(network):
        # Narrower attention has no head of its own everywhere; all else is there.
        return [name for name, _ in network.named_modules() if not name.endswith(("norm2", "qkv", "proj"))]

    assert layers(small) == layers(public)
    for name in ("label_dim", "augment_dim", "num_class_embeds", "sample_size", "num_blocks"):
        assert small.config[name] == public.config[name], name
    assert small.config["dropout"] == {"SongUNet": 0.13, "DhariwalUNet": 0.10}[cls.__name__]


@pytest.mark.parametrize("name", ["SongUNet", "DhariwalUNet"])
def test_dropout_that_is_left_on_shows_on_the_small_networks(networks, name):
    model = networks[name]
    size = model.network.config.sample_size
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    sigma, label = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        quiet = model.eval()(x, sigma, label)
        torch.manual_seed(0)
        noisy = model.train()(x, sigma, label)
        model.eval()
    assert (noisy - quiet).norm() > 0.01 * (quiet - x).norm()
