"""Rewards without a download: the bundled classifier, a user's function, sums; and what is refused."""

import pytest
import torch
from torch import Tensor

from diffdistill.data import load_images
from diffdistill.errors import ConfigError, DataError
from diffdistill.rewards import CallableReward, Reward, WeightedReward, load_reward


def brightness(images: Tensor, prompts=None) -> Tensor:
    return images.flatten(1).mean(1)


def test_the_classifier_scores_the_log_probability_of_the_label():
    data = load_images("builtin:fashion_mnist", split="test", limit=200)
    images, labels = data.images.float() / 255, data.labels
    reward = load_reward("classifier")
    scores = torch.stack([reward(images, torch.full_like(labels, k)) for k in range(10)], 1)
    assert isinstance(reward, Reward)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(200))
    assert (scores.argmax(1) == labels).float().mean() > 0.85
    assert torch.equal(reward(images, labels), scores.gather(1, labels[:, None]).squeeze(1))


def test_the_classifiers_gradient_raises_the_score_and_leaves_its_weights_alone():
    images = torch.full((4, 1, 28, 28), 0.3, requires_grad=True)
    reward, labels = load_reward("classifier"), torch.arange(4)
    before = reward(images, labels)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    assert (reward(images + 1e-2 * gradient.sign(), labels) > before).all()
    assert all(not p.requires_grad for p in reward.net.parameters())


def test_the_classifier_refuses_other_images_and_texts():
    reward = load_reward("classifier")
    with pytest.raises(DataError, match=r"reads images of 1x28x28 and got 3x32x32"):
        reward(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match="needs one class label an image"):
        reward(torch.zeros(2, 1, 28, 28), ["a shoe", "a bag"])


def test_code_is_not_run_without_leave(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "mine.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\ndef bright(x, c): ...\n"
    )
    for name in (f"{tmp_path / 'mine.py'}:bright", "antigravity:fly"):
        with pytest.raises(ConfigError, match=r"is code, which would be run: say --allow-code"):
            load_reward(name)
    assert not trace.exists()


def test_the_packages_own_examples_need_no_leave_and_cannot_be_replaced(tmp_path, monkeypatch):
    """`examples/...` is the package's file, whatever lies in the current folder; a user's own is `./examples/...`."""
    other = tmp_path / "examples" / "emoji"
    other.mkdir(parents=True)
    (other / "judge.py").write_text("def noto(images, prompts): return [7.0] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    images = load_images("builtin:emoji", split="test", limit=8).images.float() / 255
    scores = load_reward("examples/emoji/judge.py:noto")(images)
    assert ((scores > 0.5).tolist()) == [True, False] * 4  # each concept in Noto, then in Twemoji
    torch.testing.assert_close(load_reward("examples/emoji/judge.py:twemoji")(images), 1 - scores)
    for name in ("./examples/emoji/judge.py:noto", f"{other}/judge.py:noto", "examples/../examples/emoji/absent.py:f"):
        with pytest.raises(ConfigError, match="say --allow-code"):
            load_reward(name)


def test_a_function_in_a_file(tmp_path, consent):
    file = tmp_path / "mine.py"
    file.write_text(
        "from diffdistill.rewards import CallableReward\n"
        "def bright(images, prompts):\n    return images.flatten(1).mean(1)\n"
        "def sizes(pictures, prompts):\n    return [p.size[0] / 10 for p in pictures]\n"
        "judge = CallableReward(sizes, pil=True)\nnumber = 3\n"
    )
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(load_reward(f"{file}:bright")(images), images.flatten(1).mean(1))
    judge = load_reward(f"{file}:judge")
    assert not judge.differentiable
    assert judge(images).tolist() == pytest.approx([0.8, 0.8, 0.8])
    with pytest.raises(ConfigError, match=r"mine\.py:number' is no reward; give a function of \(images, prompts\)"):
        load_reward(f"{file}:number")
    with pytest.raises(ConfigError, match="defines no 'absent'"):
        load_reward(f"{file}:absent")


def test_a_function_that_is_not_there(tmp_path, consent):
    with pytest.raises(ConfigError, match="does not exist"):
        load_reward(f"{tmp_path / 'absent.py'}:bright")
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_reward("no_such_module:bright")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"fails when it is run \(ZeroDivisionError"):
        load_reward(f"{tmp_path / 'broken.py'}:bright")


def test_scores_with_further_results_and_wrong_shapes():
    images = torch.rand(3, 1, 4, 4)
    assert CallableReward(lambda x, c: ([1, 2, 3], {"why": 0}))(images).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match=r"returned \(\) for 3 images"):
        CallableReward(lambda x, c: x.mean(), "mean")(images)
    with pytest.raises(DataError, match="reads texts and got none"):
        CallableReward(brightness, needs_prompt=True)(images)


def test_gray_and_colour_pictures_reach_a_function_of_pil():
    modes = CallableReward(
        lambda pictures, c: [len(p.getbands()) + p.getpixel((0, 0)) / 1000 for p in pictures], pil=True
    )
    assert modes(torch.full((1, 1, 4, 4), 1.0)).tolist() == pytest.approx([1.255])
    bands = CallableReward(lambda pictures, c: [len(p.getbands()) for p in pictures], pil=True)
    assert bands(torch.zeros(2, 3, 4, 5)).tolist() == [3, 3]


def test_a_weighted_sum_is_the_sum_and_its_gradient():
    one, two = CallableReward(brightness, "one"), CallableReward(lambda x, c: x.square().flatten(1).sum(1), "two")
    total = WeightedReward({"one": (2.0, one), "two": (-0.5, two)})
    images = torch.rand(3, 1, 4, 4, requires_grad=True)
    torch.testing.assert_close(total(images), 2 * one(images) - 0.5 * two(images))
    (gradient,) = torch.autograd.grad(total(images).sum(), images)
    torch.testing.assert_close(gradient, 2 / 16 - images.detach())
    assert total.name == "2 one + -0.5 two"
    assert total.differentiable
    assert not WeightedReward({"one": (1.0, one), "pil": (1.0, CallableReward(brightness, pil=True))}).differentiable


OWN = """
class Mine:
    name, differentiable, needs_prompt, version = "mine", True, False, "3"
    def __init__(self, answer):
        self.answer = answer
    def __call__(self, images, prompts=None):
        return self.answer(images)
    def to(self, device):
        return self

scalar, column, short = Mine(lambda x: x.mean()), Mine(lambda x: x.mean((1, 2))), Mine(lambda x: x.mean((1, 2, 3))[:1])
good = Mine(lambda x: x.mean((1, 2, 3)).tolist())
"""


def test_what_a_reward_of_ones_own_class_returns_is_looked_at(tmp_path, consent):
    """One score for all would be a weaker gradient, and rows of scores other images than the best, without a word."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    images = torch.ones(3, 1, 4, 4)
    for name, shape in (("scalar", r"\(\)"), ("column", r"\(3, 4\)"), ("short", r"\(1,\)")):
        with pytest.raises(DataError, match=rf"the reward mine returned {shape} for 3 images"):
            load_reward(f"{file}:{name}")(images)
    good = load_reward(f"{file}:good").to("cpu")
    assert (good(images).tolist(), good.version) == ([1.0] * 3, "3")
    with pytest.raises(DataError, match="give one number an image"):
        CallableReward(lambda x, _: x.mean((1, 2, 3)) + 1j)(images)
