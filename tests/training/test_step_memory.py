"""What a step holds: no graph waits while another is made, and none is made that no gradient goes through."""

import weakref

import pytest
import torch
from runs import settings, task

from diffdistill.matching.step import DistributionMatching
from diffdistill.training.randomness import seed_step


class Kept:
    """A tensor that a graph has saved, for as long as the graph lives."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize(("name", "adversarial"), [("dmd2", {"features": "critic"}), ("sid", {})])
def test_each_term_of_the_critics_loss_begins_without_any_other_graph(tmp_path, monkeypatch, name, adversarial):
    """The student's is gone before the first, the denoising loss' before the discriminator's."""
    made, alive = task(settings(name, tmp_path, method={"adversarial": adversarial})), []
    kept = []
    original = DistributionMatching.critic_losses

    def critic_losses(self, *batch):
        terms = original(self, *batch)
        while True:
            alive.append(sum(reference() is not None for reference in kept))
            if (term := next(terms, None)) is None:
                return
            yield term

    def pack(tensor):
        one = Kept(tensor.detach())  # with its graph it would hold itself
        kept.append(weakref.ref(one))
        return one

    monkeypatch.setattr(DistributionMatching, "critic_losses", critic_losses)
    for step in range(2):
        seed_step(0, step)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
            made.match(step, step)
    updates = made.config.critic.updates_per_step
    assert len(alive) == 2 * updates * 3  # two terms, and the end
    assert len(kept) > 100
    assert set(alive) == {0}


def test_the_first_step_trains_the_critic_alone(tmp_path):
    """A critic that is still the teacher tells nothing: what is left of their gap is rounding."""
    made = task(settings("sid", tmp_path))
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    seed_step(0, 0)
    figures = made.match(0, 0)
    assert "critic/loss" in figures
    assert "gradient/matching" not in figures
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    assert "gradient/matching" in made.match(1, 1)
