"""One step of aligning: which pairs, how they are mirrored, which texts, which reference, what a tie counts."""

from dataclasses import replace
from math import log

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

from tiny_text import pair_parquet, stable_diffusion

from diffdistill.config import load_config
from diffdistill.config.align import Align
from diffdistill.data.pairs import PairSet, load_pairs
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.training.device import Device
from diffdistill.training.tasks import align
from diffdistill.training.tasks.align import AlignTask

WORDS = [
    "output_dir=none", "data.path=none", "data.image_size=null", "train_batch_size=4", "mixed_precision=no",
    "gradient_checkpointing=false", "optimizer.learning_rate=1e-3", "data.horizontal_flip=true", "lora.rank=2",
]  # fmt: skip


class Spy:
    """A function, with what it was last given and what it returned."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **settings):
        self.args, self.settings = args, settings
        self.answer = self.function(*args, **settings)
        return self.answer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    stable_diffusion(folder / "sd")
    pair_parquet(folder / "pairs.parquet")
    return folder


@pytest.fixture
def pairs(world):
    """Distinct texts, and every third pair a tie."""
    found = load_pairs(str(world / "pairs.parquet"))
    several = tuple(replace(p, text=f"thing {i}", tie=i % 3 == 0) for i, p in enumerate(found.pairs))
    return PairSet(several, "pairs", found.counts, "digest")


@pytest.fixture
def made(world, pairs, monkeypatch):
    """`made(words)`: a task whose adapters say something, with spies on the parts of its step."""

    def make(*words):
        config = load_config(Align, "align/mapo_sd15", [f"model={world / 'sd'}", *WORDS, *words]).config
        task = AlignTask(config, load_pipeline(str(world / "sd")), pairs, Device("no", 1))
        with torch.no_grad():
            for weight in task.adapted.low_rank.parameters():
                weight.normal_(std=0.5)
        spies = {name: Spy(getattr(align, name)) for name in ("pictures_of", "noise_pairs", "diffusion_dpo_loss")}
        for name, spy in spies.items():
            monkeypatch.setattr(align, name, spy)
        task.model.conditions = spies["conditions"] = Spy(task.model.conditions)
        torch.manual_seed(1)
        return task, spies

    return make


def test_pairs_are_mirrored_whole_and_keep_their_text(made):
    task, spies = made("method.name=mapo")
    task.update(0)
    chosen, size, flips = spies["pictures_of"].args
    assert 0 < flips.sum() < 4
    plain = [picture.pixels for picture in spies["pictures_of"].function(chosen, size)]
    for i, picture in enumerate(spies["pictures_of"].answer):  # the wanted ones, then the others
        assert torch.equal(picture.pixels, plain[i].flip(-1) if flips[i % 4] else plain[i])
    assert spies["conditions"].args[0] == 2 * [pair.text for pair in chosen]


def test_every_step_has_pairs_of_its_own_until_all_have_come(made, pairs):
    task, spies = made("method.name=mapo")
    seen = []
    for step in range(len(pairs) // 4):
        task.update(step)
        seen += [pair.text for pair in spies["pictures_of"].args[0]]
    assert len(seen) >= 8
    assert len(set(seen)) == len(seen)


def test_the_reference_is_the_pipeline_as_it_was_loaded(made, world):
    task, spies = made("method.name=diffusion_dpo")
    task.update(0)
    trained, reference = spies["diffusion_dpo_loss"].args[:2], spies["diffusion_dpo_loss"].args[2:4]
    noised, fresh = spies["noise_pairs"].answer, load_pipeline(str(world / "sd"))
    with torch.no_grad():
        predicted = fresh.predict(fresh.network.eval(), noised.x_t, noised.t, spies["conditions"].answer)
    expected = noised.losses(predicted, task.config.method.loss_space)
    for ours, theirs, other in zip(reference, expected, trained, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_tie_is_a_choice_of_either(made, smoothing):
    """-log sigmoid(beta h) for a choice (2311.12908, eq. 14), the mean over both orders for a tie."""
    task, spies = made("method.name=diffusion_dpo", f"method.label_smoothing={smoothing}")
    found = task.update(1)
    ties = torch.tensor([pair.tie for pair in spies["pictures_of"].args[0]])
    assert 0 < ties.sum() < 4
    l_w, l_l, r_w, r_l = (x.detach().double() for x in spies["diffusion_dpo_loss"].args)
    h = task.config.method.beta * ((l_l - l_w) - (r_l - r_w)) / 2
    part = torch.where(ties, 0.5, smoothing).double()
    loss = (1 - part) * torch.log1p((-h).exp()) + part * torch.log1p(h.exp())
    assert float(found["loss"]) == pytest.approx(float(loss.mean()), rel=1e-4)
    assert abs(float(loss.mean()) - log(2)) > 0.05


def test_a_robust_mean_is_that_of_the_whole_batch_whatever_its_parts(made, monkeypatch):
    """The gradient of -b ln mean exp(-L / b): in one pass, and in parts that were passed ahead without a graph."""
    words = "method.name=diffusion_dpo", "optimizer.max_grad_norm=null"

    def stepped(*more):
        task, spies = made(*words, *more)
        calls, predict, kept = [], task.predict, []
        task.predict = lambda *given: calls.append(1) or predict(*given)
        task.updater.step = lambda _: kept.extend(p.grad.clone() for p in task.adapted.low_rank.parameters()) or {}
        if not more:  # the plain mean's step, with another loss in its place
            dpo = spies["diffusion_dpo_loss"].function

            def other(*args, **settings):
                out = dpo(*args, **settings)
                return out._replace(loss=-0.5 * (-out.losses / 0.5).exp().mean().log())

            monkeypatch.setattr(align, "diffusion_dpo_loss", other)
        return float(task.update(0)["loss"]), kept, len(calls)

    loss, gradients, _ = stepped()
    for parts, passes in (
        ("null", 2),
        ("3", 6),
    ):  # of two networks; the trained one passes twice where there are parts
        mine, kept, calls = stepped("method.robust_beta=0.5", f"micro_batch_size={parts}")
        assert calls == passes
        assert mine == pytest.approx(loss, rel=1e-5)
        for one, wanted in zip(kept, gradients, strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-6)
