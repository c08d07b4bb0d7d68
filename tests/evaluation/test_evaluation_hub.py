"""CLIP and DINOv2 through transformers: tiny real models with random weights, built from their configurations."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffdistill.errors import CheckpointError, ConfigError, DataError
from diffdistill.evaluation import clip_score, load_features


def pictures(n: int, channels: int = 3, height: int = 28, width: int = 28, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real transformers CLIP with random weights and a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra `text`)")
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz "
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = len(vocabulary) - 1
    text = small | {"vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    vision = small | {"image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


TEXTS = ["a red hat", "shoes", "a very long text that is cut", "bag"]


def test_clip_score_is_that_of_transformers(tiny_clip: Path):
    import transformers

    images = pictures(4, 3, 24, 24, seed=1)
    model = transformers.CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
                    pixel_values=(images.float() / 255 - mean) / std)  # fmt: skip
    pairs = (out.logits_per_image / model.logit_scale.exp()).diagonal()
    expected = float((100 * pairs.detach().double().clamp(min=0)).mean())
    score = clip_score(images, TEXTS, str(tiny_clip))
    assert float(score) == pytest.approx(expected, abs=1e-6)
    assert len(set(tokens["input_ids"][0].tolist())) > 3


def test_clip_score_of_features_has_a_closed_form():
    x = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert float(clip_score(x, y)) == pytest.approx(100 * (1 + 0.5**0.5 + 0) / 3)
    with pytest.raises(DataError, match="3 images and 2 texts"):
        clip_score(x, y[:2])


def test_clip_and_its_text_side_through_load_features(tiny_clip: Path):
    extractor = load_features(f"clip:{tiny_clip}")
    assert (extractor.dim, extractor.size) == (16, (24, 24))
    assert extractor(pictures(2, 3, 30, 48)).shape == (2, 16)
    assert load_features(str(tiny_clip)).sha256 == extractor.sha256
    assert float(clip_score(pictures(4), TEXTS, extractor)) == float(clip_score(pictures(4), TEXTS, str(tiny_clip)))


def test_dinov2_features_are_the_normed_class_token(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra `text`)")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    extractor, images = load_features(f"dinov2:{tmp_path}"), pictures(3)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        token = model(pixel_values=(images.float() / 255 - mean) / std).last_hidden_state[:, 0]
    assert torch.allclose(extractor(images).float(), token, atol=1e-5)
    with pytest.raises(ConfigError, match="has no text side"):
        extractor.embed_texts(["hat"])


def test_models_without_weights_or_of_another_kind_are_refused(tmp_path: Path):
    pytest.importorskip("transformers", reason="needs transformers (extra `text`)")
    with pytest.raises(CheckpointError, match="cannot be fetched from the Hub"):
        load_features("nobody/nothing-at-all")
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        load_features(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        load_features(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="is a 'bert' model"):
        load_features(str(tmp_path))
