"""Rewards that are networks: the score is the one of the model, and a gradient reaches the image."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reward_models import LETTERS, blip_score, blip_weights, tiny_clip, to_open_clip, write_tokenizer
from safetensors.torch import save_file
from torch import Tensor

from diffdistill.errors import CheckpointError, ConfigError, DataError
from diffdistill.rewards import Reward, load_reward, score_pairs
from diffdistill.rewards.open_clip import Size
from diffdistill.rewards.preprocess import CLIP_MEAN, CLIP_STD, preprocess
from diffdistill.rewards.weights import features_of

transformers = pytest.importorskip("transformers", reason="needs transformers (extra `text`)")
TEXTS = ["a red hat", "shoes", "a very long text that is cut", "bag"]


def pictures(n: int = 4, channels: int = 3, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator) / 255


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.CLIPModel]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, tiny_clip(folder)


def torch_file(file: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, file)  # noqa: TID251  what is read has to be written
    return file


# ---- CLIP, PickScore, HPSv2


def similarity(model, folder: Path, images: Tensor) -> Tensor:
    """exp(logit_scale) cos, by the model's own forward."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        return model(**tokens, pixel_values=(images - mean) / std).logits_per_image.diagonal()


def test_pickscore_is_the_models_own_similarity(clip):
    folder, model = clip
    scores = load_reward(f"pickscore:{folder}")(pictures(), TEXTS)
    torch.testing.assert_close(scores, similarity(model, folder, pictures()))
    assert scores.std() > 0.05


def test_clip_is_a_hundred_cosines_and_keeps_its_sign(clip):
    folder, model = clip
    expected = 100 * similarity(model, folder, pictures()) / model.logit_scale.detach().exp()
    reward = load_reward(str(folder))
    torch.testing.assert_close(reward(pictures(), TEXTS), expected)
    reward.model.visual_projection.weight.neg_()  # the metric would be cut at 0, without a gradient
    torch.testing.assert_close(reward(pictures(), TEXTS), -expected)
    assert expected.min() > 1


def test_hps_reads_open_clips_file_without_running_it(clip, tmp_path, monkeypatch):
    folder, model = clip
    write_tokenizer(tmp_path)
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in to_open_clip(model).items()
    }
    torch_file(tmp_path / "HPS_v2.1_compressed.pt", {"state_dict": half, "epoch": 1})
    expected = similarity(model, folder, pictures()) / model.logit_scale.detach().exp()
    monkeypatch.setattr("diffdistill.rewards.clip.VIT_H_14", Size(vision_heads=2, text_heads=2))
    reward = load_reward(str(tmp_path))
    assert reward.name == "hps_v2"
    torch.testing.assert_close(reward(pictures(), TEXTS), expected, atol=1e-3, rtol=0)


def test_an_open_clip_file_with_a_tensor_more_is_refused(clip, tmp_path):
    tensors = to_open_clip(clip[1])
    tensors["visual.extra.weight"] = torch.zeros(1)
    write_tokenizer(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "HPS_v2.1.safetensors")
    with pytest.raises(CheckpointError, match=r"visual\.extra\.weight has no place"):
        load_reward(str(tmp_path))


def test_features_of_both_transformers():
    features = torch.ones(2, 3)
    assert features_of(features) is features
    assert features_of(SimpleNamespace(pooler_output=features, last_hidden_state=None)) is features


def test_chunks_and_repeated_texts_change_nothing(clip):
    reward = load_reward(f"clip:{clip[0]}", batch_size=3)
    together = reward(pictures(), TEXTS)
    alone = [load_reward(f"clip:{clip[0]}")(pictures()[k : k + 1], TEXTS[k : k + 1]) for k in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(reward(pictures(), TEXTS), together, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["clip", "aesthetic", "imagereward"])
def test_the_gradient_is_that_of_the_score_and_reaches_the_image_only(name, clip, tmp_path):
    reward = {"clip": lambda: load_reward(f"clip:{clip[0]}"), "aesthetic": lambda: aesthetic(clip, tmp_path),
              "imagereward": lambda: image_reward()}[name]()  # fmt: skip
    # Within the range: where a pixel is clamped the gradient is not that of the value.
    images = (0.4 + 0.2 * pictures(2, height=20, width=31)).requires_grad_()
    scores = reward(images, TEXTS[:2])
    scores.sum().backward()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = 1e-3 * direction
        change = (reward(images + step, TEXTS[:2]) - reward(images - step, TEXTS[:2])).sum() / 2e-3
    assert (images.grad * direction).sum().item() == pytest.approx(change.item(), rel=0.05)
    networks = [part for part in vars(reward).values() if isinstance(part, torch.nn.Module)]
    assert networks
    assert all(p.grad is None and not p.requires_grad for net in networks for p in net.parameters())


def test_pair_scores_are_antisymmetric(clip):
    reward = load_reward(f"pickscore:{clip[0]}")
    one, other = pictures(seed=1), pictures(seed=2)
    ab, ba = score_pairs(reward, one, other, TEXTS), score_pairs(reward, other, one, TEXTS)
    torch.testing.assert_close(ab.margin, -ba.margin, atol=0, rtol=0)
    assert ab.accuracy + ba.accuracy == 1
    assert score_pairs(reward, one, one, TEXTS).accuracy == 0.5


def test_texts_are_needed_one_an_image(clip):
    reward = load_reward(f"clip:{clip[0]}")
    assert isinstance(reward, Reward)
    with pytest.raises(DataError, match="reads texts and got none"):
        reward(pictures())
    with pytest.raises(DataError, match="reads texts and got class labels"):
        reward(pictures(), torch.arange(4))
    with pytest.raises(DataError, match="4 images and 2 texts"):
        reward(pictures(), TEXTS[:2])


# ---- preprocessing


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (37, 91), (100, 64), (24, 24), (12, 12)])
def test_preprocessing_is_the_processors_but_for_its_rounding(height, width):
    from importlib import import_module

    try:  # transformers 5: the one that needs no torchvision
        processor_class = import_module("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    except ImportError:
        processor_class = transformers.CLIPImageProcessor
    smooth = torch.nn.functional.interpolate(pictures(2, 3, 9, 9), (height, width), mode="bicubic").clamp(0, 1)
    images = (smooth * 255).round() / 255
    processor = processor_class(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    arrays = [(image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy() for image in images]
    expected = torch.as_tensor(processor(arrays, return_tensors="pt")["pixel_values"])
    difference = (preprocess(images, 24) - expected).abs()
    # The processor rounds to 1/255 after each of two passes of its resize; the channels are divided by 0.26.
    assert difference.max() < 2 / 255 / 0.26
    assert difference.mean() < 0.5 / 255 / 0.26


def test_without_antialiasing_a_reward_would_see_another_picture():
    images = pictures(2, 3, 512, 512)
    plain = torch.nn.functional.interpolate(images, (24, 24), mode="bicubic")
    ours = preprocess(images, 24, (0, 0, 0), (1, 1, 1))
    assert (ours - 0.5).abs().max() < 0.1
    assert (plain - 0.5).abs().max() > 0.4


def test_gray_is_three_equal_channels():
    gray = pictures(1, 1)
    assert torch.equal(preprocess(gray, 24), preprocess(gray.expand(-1, 3, -1, -1), 24))


# ---- aesthetic


def aesthetic_folder(clip, folder: Path) -> tuple[Path, torch.nn.Sequential]:
    from diffdistill.rewards.aesthetic import linear_head

    clip[1].save_pretrained(folder)
    head = linear_head(16).eval()
    torch_file(folder / "sac+logos+ava1-l14-linearMSE.pth", {f"layers.{k}": v for k, v in head.state_dict().items()})
    return folder, head


def aesthetic(clip, folder: Path) -> Reward:
    return load_reward(str(aesthetic_folder(clip, folder)[0]))


def test_aesthetic_is_the_head_on_the_normalised_feature(clip, tmp_path):
    folder, head = aesthetic_folder(clip, tmp_path)
    features = features_of(clip[1].get_image_features(pixel_values=preprocess(pictures(), 24)))
    with torch.no_grad():
        expected = head(features / features.norm(dim=1, keepdim=True)).squeeze(1)
    reward = load_reward(f"aesthetic:{folder}")
    torch.testing.assert_close(reward(pictures()), expected)
    assert not reward.needs_prompt
    weight = torch.linalg.multi_dot([head[k].weight for k in (7, 6, 4, 2, 0)])  # no activations: one linear map
    shift = reward(pictures()) - (features / features.norm(dim=1, keepdim=True) @ weight.T).squeeze(1)
    torch.testing.assert_close(shift, shift[:1].expand(4), atol=1e-5, rtol=0)


# ---- ImageReward


class Letters:
    """A tokenizer of single letters, padded and cut like BERT's."""

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        rows = [[2 + LETTERS.index(c) for c in text][:max_length] for text in texts]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def image_reward(words: dict[str, Tensor] | None = None):
    from diffdistill.rewards.aesthetic import read_head
    from diffdistill.rewards.image_reward import ImageReward, blip_of_original

    weights = words or blip_weights()
    blip = blip_of_original(weights, Path("ImageReward.pt"), head_width=4)
    mlp = {name: tensor for name, tensor in weights.items() if name.startswith("mlp.")}
    return ImageReward(blip, read_head(mlp, "mlp.layers.", 8, Path("ImageReward.pt")), Letters(), "v", batch_size=3)


def test_imagereward_is_blips_forward_written_out():
    weights, images = blip_weights(), pictures(4, height=16, width=16)
    tokens = Letters()(TEXTS, "max_length", True, 35, "pt")
    expected = blip_score(weights, preprocess(images, 16), tokens["input_ids"], tokens["attention_mask"])
    assert expected.std() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(image_reward(weights)(images, TEXTS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["blip.visual_encoder.norm.weight", "mlp.layers.7.bias"])
def test_imagereward_with_a_tensor_less_is_refused(name):
    weights = blip_weights()
    del weights[name]
    with pytest.raises(CheckpointError, match="is missing"):
        image_reward(weights)


# ---- absent weights


@pytest.mark.parametrize("name", ["pickscore", "imagereward", "hps_v2", "clip", "aesthetic"])
def test_absent_weights_are_one_sentence_that_says_what_goes_where(name):
    with pytest.raises(
        CheckpointError, match=f"weights of the reward {name}.*download .* of [-\\w]+/[-\\w]+ and give '{name}:FOLDER'"
    ):
        load_reward(f"{name}:nobody/nothing")


def test_a_tokenizer_that_is_missing_belongs_beside_the_weights(clip, tmp_path):
    clip[1].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json or vocab\.json .* of laion/.* into the folder"):
        load_reward(f"pickscore:{tmp_path}")


def test_a_folder_without_a_reward(tmp_path):
    with pytest.raises(CheckpointError, match="holds no reward that is known"):
        load_reward(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"has no ImageReward\.safetensors or ImageReward\.pt"):
        load_reward(f"imagereward:{tmp_path}")


def test_an_unknown_name():
    with pytest.raises(ConfigError, match=r"did you mean pickscore.*aesthetic, .*, pickscore, a folder, or FILE\.py:"):
        load_reward("pickscor")
