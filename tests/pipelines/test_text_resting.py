"""Text encoders and VAE are on the device while they are at work; encoded prompts of a run stay there, in bounds."""

import pytest
import torch

from diffdistill.pipelines.text import latents, texts
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.pipelines.text.kept import Kept, size_of

pytest.importorskip("transformers")
GPU = torch.device("cpu", 0)  # is the CPU, and is called otherwise


@pytest.fixture
def emoji(monkeypatch):
    """A pipeline on a device whose moves are seen: its `where` says the last of each part."""
    adapter = load_pipeline("builtin:emoji_teacher")
    names = {id(part): name for name, part in adapter.pipeline.components.items()}
    adapter.where = {}
    monkeypatch.setattr(
        latents, "move", lambda part, place: adapter.where.update({names[id(part)]: place == GPU and "device"})
    )
    adapter.resting = True
    adapter.place(GPU)
    return adapter


def test_a_part_is_on_the_device_from_its_use_until_it_rests(emoji, monkeypatch):
    monkeypatch.setattr(texts, "QUIET", 3)
    assert emoji.where == {"vae": False, "text_encoder": False}
    images = emoji.decode(torch.zeros(1, *emoji.latent_shape))
    assert emoji.where == {"vae": "device", "text_encoder": False}
    emoji.rest()
    emoji.encode(images)
    emoji.joined(["a cow"])
    assert emoji.where == {"vae": "device", "text_encoder": "device"}
    for _ in range(2):
        emoji.joined(["a cow"])
    assert emoji.where["text_encoder"] == "device"
    emoji.joined(["a cow"])  # the third call in turn that needed no encoder
    assert emoji.where == {"vae": "device", "text_encoder": False}
    emoji.joined(["a pig"])
    assert emoji.where["text_encoder"] == "device"


def test_encoded_prompts_are_sent_once_while_there_is_room(monkeypatch):
    adapter = load_pipeline("builtin:emoji_teacher")
    prompts = ["a cow", "a pig", "a dog"]
    own = adapter.joined(prompts, dtype=torch.bfloat16)  # all are encoded, and kept in the CPU's memory
    size = size_of(adapter.encoded(prompts[0])) // 2  # in bfloat16
    sent = []
    send = texts.send
    monkeypatch.setattr(texts, "send", lambda value, device: sent.append(1) or send(value, device))
    adapter.device = torch.device("meta")
    adapter.there = Kept(2 * size)
    for _ in range(3):
        there = adapter.joined(prompts[:2], dtype=torch.bfloat16)
    assert len(sent) == 2
    assert there["encoder_hidden_states"].device.type == "meta"
    assert there["encoder_hidden_states"].shape == own["encoder_hidden_states"][:2].shape
    assert there["encoder_hidden_states"].dtype == torch.bfloat16
    adapter.joined(prompts[1:], dtype=torch.bfloat16)  # a third takes the place of the first
    assert len(sent) == 3
    assert adapter.there.size <= 2 * size
    adapter.joined(prompts[:1], dtype=torch.bfloat16)
    adapter.joined(prompts[:1])  # as it was encoded, and not in bfloat16: another tensor
    assert len(sent) == 5


def test_what_a_grid_sends_may_meet_a_gradient():
    adapter = load_pipeline("builtin:emoji_teacher")
    adapter.encoded("a cow")
    adapter.device = torch.device("meta")
    with torch.inference_mode():
        adapter.joined(["a cow"])
    assert not adapter.on_device(["a cow"], None)[0]["encoder_hidden_states"].is_inference()
