"""Options of recipes by formulas of others: rescaled guidance, shifted times, the teacher's images as the reals."""

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from pydantic import ValidationError
from text_world import LORA, settings, task
from tiny_text import flux, stable_diffusion, stable_diffusion_3

from diffdistill import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.matching.settings import Choices
from diffdistill.pipelines.text.schedule import shifted_times


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("recipes")
    stable_diffusion(made / "sd")
    (made / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(8)))
    return made


def test_rescaled_guidance_is_that_of_stock_diffusers(folder):
    """Of the network's own output, here epsilon, image by image."""
    teacher = Denoiser.from_pretrained(folder / "sd")
    cond = teacher.prompts.ids(["thing 0", "thing 1"])
    x, sigma = 3 * torch.randn(2, *teacher.image_shape), torch.tensor([0.7, 4.0])

    def eps_of(x0):
        return (x - x0) / sigma[:, None, None, None]

    with torch.no_grad():
        null, plain = (eps_of(teacher(x, sigma, rows)) for rows in (teacher.null_condition(cond), cond))
        wanted = rescale_noise_cfg(null + 6.0 * (plain - null), plain, guidance_rescale=0.7)
        unchanged = teacher.guided(x, sigma, cond, 6.0)
        teacher.guidance_rescale = 0.7
        guided, taps = teacher.guided_tapped(x, sigma, cond, 6.0, ("mid_block",))
    torch.testing.assert_close(eps_of(guided), wanted, rtol=1e-4, atol=1e-4)
    assert (unchanged - guided).abs().max() > 1e-3
    assert len(taps[0]) == 2


def test_a_run_rescales_its_teacher_alone_and_only_where_there_is_guidance(folder, tmp_path):
    made = task(settings(folder, options={"guidance_rescale": 0.7}, **LORA))
    roles = {name: each.guidance_rescale for name, each in made.denoisers.items()}
    assert roles == {"teacher": 0.7, "student": 0.0, "critic": 0.0, "average": 0.0}
    with pytest.raises(ConfigError, match="never forms the guided output"):
        Choices("score_gap", guidance="outside", guidance_rescale=0.5)
    flux(tmp_path / "flux")
    (tmp_path / "prompts.txt").write_text("thing\n")
    with pytest.raises(ConfigError, match="is told its guidance and has one output"):
        task(settings(tmp_path, "flux", options={"guidance_rescale": 0.7}, **LORA))


def test_shifted_times_are_those_of_stock_schedulers(folder, tmp_path):
    teacher = Denoiser.from_pretrained(folder / "sd")
    stock = LCMScheduler(original_inference_steps=1000)
    stock.set_timesteps(4)
    assert shifted_times(teacher.adapter, teacher.process, 4, 1.0) == stock.timesteps.tolist()
    assert shifted_times(teacher.adapter, teacher.process, 2, 3.0) == [999, 749]  # 3/2 / (1 + 2/2) = 3/4
    flow = Denoiser.from_pretrained(stable_diffusion_3(tmp_path / "sd3"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(4, sigmas=[1.0, 0.75, 0.5, 0.25])
    times = shifted_times(flow.adapter, flow.process, 4, 5.0)
    torch.testing.assert_close(torch.tensor(times), scheduler.timesteps)
    student = {"steps": 2, "shift": 3.0, "lora": {"rank": 2}}
    made = task(settings(folder, **LORA | {"student": student}))
    assert torch.allclose(torch.tensor(made.levels), made.student.process.level_at(torch.tensor([999, 749])))
    with pytest.raises(ConfigError, match=r"student.shift and student.timesteps both say"):
        task(settings(folder, **LORA | {"student": student | {"timesteps": [999, 500]}}))


def test_the_heads_see_the_teachers_images_with_their_own_prompts(folder, monkeypatch):
    """With prompts alone: the reals of a step are the ends of the teacher's trajectories for that step's prompts."""
    student = {"steps": 1, "lora": {"rank": 2}, "regression": {"steps": 1, "pairs": 4, "solver_steps": 2}}
    adversarial = {"reals": "teacher", "weight": 0.1}
    config = settings(folder, method="dmd2", options={"adversarial": adversarial}, **LORA | {"student": student})
    made = task(config)
    seen = []
    losses = made.method.critic_losses

    def watched(x0, cond, real, noise):
        seen.append((cond, real))
        return losses(x0, cond, real, noise)

    monkeypatch.setattr(made.method, "critic_losses", watched)
    made.update(0)
    assert not seen  # a step of regression
    for step in (1, 2):
        made.update(step)
        _, _, image, cond = made.regression.pairs[step]
        assert torch.equal(seen[-1][0], cond)
        assert torch.equal(seen[-1][1], image)
    assert not torch.equal(seen[0][1], seen[-1][1])
    with pytest.raises(ValidationError, match=r"takes the images of the pairs of student.regression"):
        settings(folder, method="dmd2", options={"adversarial": adversarial}, **LORA)
    with pytest.raises(ConfigError, match=r"or method.adversarial.reals=teacher"):
        task(settings(folder, method="dmd2", options={"adversarial": {}}, **LORA))
