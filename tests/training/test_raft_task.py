"""A model that goes on with its own best samples: what is kept, beside what, and what a resumed run reads."""

import shutil

import pytest
import torch
from PIL import ImageStat
from pydantic import ValidationError
from runs import data, settings
from tiny import tiny_teacher

from diffdistill.errors import ConfigError, DataError
from diffdistill.rewards import CallableReward
from diffdistill.training.device import Device
from diffdistill.training.tasks import curated
from diffdistill.training.tasks.raft import RaftTask

SEEN = []


def ink(pictures, prompts):
    """No gradient: it counts what PIL shows."""
    scores = [float(ImageStat.Stat(picture).sum[0]) / 255 for picture in pictures]
    SEEN.append((scores, prompts))
    return scores


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    SEEN.clear()
    monkeypatch.setattr(curated, "load_reward", lambda name, batch_size: CallableReward(ink, pil=True))


def task(folder, **more):
    objective = {
        "name": "raft", "reward": "mine", "candidates": 3, "images": 20, "steps": 2, "reward_batch_size": 5,
        "real_part": 0.25,
    } | more.pop("objective", {})  # fmt: skip
    given = {"initialize_from": "tiny", "objective": objective, "class_dropout": 0.0, "train_batch_size": 8}
    made = RaftTask(settings("train", folder, **given | more), data(), Device("no"), tiny_teacher(seed=1))
    made.keep(folder, {})
    return made


def test_of_each_condition_the_best_sample_is_kept_and_a_resumed_run_reads_it(tmp_path, monkeypatch):
    first = task(tmp_path)
    kept = first.curated.images()
    assert len(kept.images) == 20
    assert kept.images.dtype == torch.uint8
    scores = [scores for scores, _ in SEEN]
    prompts = [labels for _, labels in SEEN]
    # Of each batch of 8 the three candidates in turn, five and three images at a time.
    table = torch.tensor([scores[2 * i] + scores[2 * i + 1] for i in range(9)])
    table = table.reshape(3, 3, 8).transpose(1, 2).reshape(24, 3)[:20]
    assert (table.std(1) > 0).all()
    torch.testing.assert_close(kept.images.flatten(1).float().sum(1) / 255, table.amax(1), rtol=1e-4, atol=1e-4)
    assert first.curated.scores["reward_kept"] == pytest.approx(table.amax(1).mean().item(), rel=1e-4)
    assert first.curated.scores["reward"] == pytest.approx(table.mean().item(), rel=1e-4)
    told = torch.cat([torch.cat(prompts[6 * k : 6 * k + 2]) for k in range(3)])[:20]
    assert torch.equal(kept.labels, told)
    assert len(kept.labels.unique()) == 3

    def never(*_):
        raise AssertionError("samples are drawn again")

    again = task(tmp_path)
    monkeypatch.setattr(curated, "sample_batch", never)
    assert torch.equal(again.curated.images().images, kept.images)
    with pytest.raises(AssertionError, match="drawn again"):  # what was chosen by other settings is not read
        task(tmp_path, objective={"choice": "softmax"}).curated.images()
    assert again.curated.scores == first.curated.scores


def test_a_batch_of_another_name_is_made_again(tmp_path):
    kept = task(tmp_path).curated.images().images
    first, second = (tmp_path / "curated" / f"00000{k}.safetensors" for k in (0, 1))
    shutil.copyfile(first, second)
    assert torch.equal(task(tmp_path).curated.images().images, kept)


def test_one_process_judges_for_all(tmp_path, monkeypatch):
    """A judge that says another thing each time would give each process images of its own."""
    said = [[0.0, 0.0, 1.0]] * 8
    monkeypatch.setattr(curated.processes, "lead", lambda act: act() and said)
    made = task(tmp_path)
    assert made.curated.images().labels is not None
    assert made.curated.scores == {"reward": pytest.approx(1 / 3), "reward_kept": 1.0}


def test_a_batch_is_real_images_and_kept_samples_and_moves_the_model(tmp_path):
    made = task(tmp_path, max_train_steps=3)
    images, labels = made.drawn(0, slice(0, 8))
    real, real_labels = made.data.draw(2, 0, 0)
    assert torch.equal(images[:2], real)
    assert torch.equal(labels[:2], real_labels)
    kept = made.curated.images()
    pool = {bytes(row) for row in kept.images.flatten(1).numpy()}
    assert all(bytes(((row + 1) * 127.5).round().byte().numpy()) in pool for row in images[2:].flatten(1))
    before = [p.clone() for p in made.model.parameters()]
    metrics = made.update(0)
    assert metrics["raft/reward_kept"] > metrics["raft/reward"]
    assert any(not torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, made.start.parameters(), strict=True))


def test_a_choice_by_softmax_keeps_others_than_the_best(tmp_path):
    best = task(tmp_path / "a").curated
    drawn = task(tmp_path / "b", objective={"choice": "softmax", "scale": 1e-3}).curated
    sharp = task(tmp_path / "c", objective={"choice": "softmax", "scale": 1e6}).curated
    assert torch.equal(sharp.images().images, best.images().images)
    assert not torch.equal(drawn.images().images, best.images().images)
    assert drawn.scores["reward_kept"] < best.scores["reward_kept"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"objective": {"candidates": 1}}, "objective.candidates is 1, and the best of one sample is any; give 2"),
        ({"objective": {"images": 4}}, "objective.images is 4 and train_batch_size 8; keep at least as"),
        ({"initialize_from": None}, "objective.name=raft makes a model that is there better; set initialize_from"),
        ({"objective": {"real_part": 0.95}}, "objective.real_part is 0.95, which of train_batch_size=8 is 8 real"),
        ({"objective": {"real_part": 0.05}}, "objective.real_part is 0.05, which of train_batch_size=8 is 0 real"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, more, said):
    with pytest.raises(ValidationError, match=said):
        task(tmp_path, **more)


def test_rewards_that_cannot_score_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="class_prompts has 2 texts and the model 3 classes; give one text a class"):
        task(tmp_path, objective={"class_prompts": ("a", "b")})
    texts = CallableReward(ink, pil=True, needs_prompt=True)
    monkeypatch.setattr(curated, "load_reward", lambda name, batch_size: texts)
    with pytest.raises(ConfigError, match="reads texts and the model has 3 classes; give the text of each"):
        task(tmp_path)
    labels = task(tmp_path, objective={"class_prompts": ("a", "b", "c")}).curated.images().labels[:8]
    assert SEEN[0][1] + SEEN[1][1] == ["abc"[label] for label in labels]
    broken = CallableReward(lambda images, prompts: [float("nan")] * len(images), "broken")
    monkeypatch.setattr(curated, "load_reward", lambda name, batch_size: broken)
    with pytest.raises(DataError, match="the reward broken gave a score that is not a finite number"):
        task(tmp_path / "other").curated.images()
