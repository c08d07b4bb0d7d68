"""The data of a text distillation, and what is refused in a sentence before it starts."""

import pytest
import torch

pytest.importorskip("transformers")

from text_world import settings, task, world

from diffdistill import Denoiser
from diffdistill.config.schema import Distill
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.data import text_data
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import DistillTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("text"))


def test_data_are_the_latents_of_the_images_and_their_captions(folder):
    config = settings(folder, images=True)
    model = Denoiser.from_pretrained(config.teacher)
    data = text_data(config, model)
    assert model.prompts.texts(data.ids) == [f"thing {i}" for i in range(8)]
    pixels = data.images.images[3:4] / 127.5 - 1
    torch.testing.assert_close(data.latents[3:4], model.encode(pixels))
    latents, ids = data.draw(3, seed=0, step=1)
    assert latents.shape == (3, 4, 8, 8)
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"options": {"adversarial": {}}}, "gives prompts alone"),
        ({"data": {"path": "PLAIN"}}, "has no texts"),
        ({"student": {"levels": (2.0,)}}, "give student.timesteps"),
        ({"student": {"timesteps": (900.0, 400.0)}}, "student.timesteps has 2 values"),
        ({"student": {"steps": 2, "timesteps": (400.0, 900.0)}}, "must descend"),
        ({"student": {"timesteps": (2000.0,)}}, "between 0 and 1000"),
        ({"student": {"lora": {"targets": ("to_z",)}}}, "LoRA target 'to_z' matches no"),
        ({"critic": {"lora": {"targets": ("to_z",)}}}, "LoRA target 'to_z' matches no"),
        ({"evaluation": {}}, "set evaluation.reference"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(folder, more, sentence):
    if more.get("data") == {"path": "PLAIN"}:
        more = {"data": {"path": str(folder / "plain")}}
    with pytest.raises(ConfigError, match=sentence):
        task(settings(folder, **more))


def test_activations_are_computed_anew_only_where_the_network_can():
    from edm_tiny import tiny_network

    from diffdistill.denoiser import Denoiser as Plain
    from diffdistill.process import EDM

    network = tiny_network("ddpmpp")
    config = Distill(output_dir="x", method={"name": "sid"}, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="SongUNet cannot compute its activations anew"):
        DistillTask(config, Plain(network, EDM()), None, Device("no"))


def test_settings_of_text_are_refused_for_a_teacher_of_classes():
    from tiny import tiny_teacher

    texts = {"student": {"timesteps": (999.0,)}}, {"student": {"lora": {}}}, {"critic": {"lora": {}}}
    for more in (*texts, {"student": {"shift": 2.0}}, {"teacher_lora": "style.safetensors"}):
        config = Distill(output_dir="x", method={"name": "sid"}, **more)
        with pytest.raises(ConfigError, match="is for text-to-image teachers"):
            DistillTask(config, tiny_teacher(), None, Device("no"))
