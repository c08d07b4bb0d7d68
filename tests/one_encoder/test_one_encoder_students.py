"""Students of K decoders over one encoder pass: their draw and its gradient, their run, their folder, refusals."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from edm_tiny import tiny_network
from pydantic import ValidationError
from runs import data, lines, run, settings, without
from tiny import tiny_teacher, tiny_unet, tiny_uvit

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.export.command import export
from diffdistill.export.formats import Wish
from diffdistill.export.push import parcel_of
from diffdistill.parts.one_encoder.decoders import parallel_decoders
from diffdistill.pipelines.folder import sealed
from diffdistill.pipelines.one_encoder import one_encoder
from diffdistill.pipelines.pixel.schedule import near_levels
from diffdistill.pipelines.record import check_record
from diffdistill.process import EDM, VP
from diffdistill.reporting.model_card import model_card
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.distill import student_task
from diffdistill.training.tasks.one_encoder import NoiseTerm

LABELS = torch.tensor([0, 2, 1])
SHORT = {"max_train_steps": 3, "checkpoint_every": 1, "sample_every": 0, "critic": {"updates_per_step": 1}}
ONE = SHORT | {"student": {"one_encoder": {"decoders": 3}, "regression": {"steps": 1, "pairs": 4}}}


def vp(kind):
    return VP(DDPMScheduler().alphas_cumprod, kind)


PROCESSES = {"edm": EDM(), "epsilon": vp("epsilon"), "v": vp("v_prediction"), "sample": vp("sample")}


def student(process=PROCESSES["edm"], count=3):
    levels = near_levels(process, count, 2.5, None)
    plain = Denoiser(tiny_unet(3), process, metadata={"role": "student", "levels": [levels[0]]}).eval()
    return one_encoder(plain, levels)


def by_hand(model, x, cond):
    """DDIM as its paper writes it, x = a x0 + s eps, with each decoder alone: x0 and every eps."""
    process, levels = model.process, torch.tensor(model.decoders)
    is_edm = isinstance(process, EDM)
    times = 250 * levels.log() if is_edm else process.time(levels)
    a, s = (torch.ones(3), levels) if is_edm else (1 / (1 + levels**2).sqrt(), levels / (1 + levels**2).sqrt())
    a, s = [*a, torch.tensor(1.0)], [*s, torch.tensor(0.0)]
    x, found = a[0] * x, []
    x_in = x / (levels[0] ** 2 + 0.25).sqrt() if is_edm else x
    for k, time in enumerate(times):
        with parallel_decoders(model.network, [time]):
            f = model.network(x_in, times[0], cond).sample
        if is_edm:
            x0 = (0.25 * x + 0.5 * s[k] * (s[k] ** 2 + 0.25).sqrt() * f) / (s[k] ** 2 + 0.25)
        else:
            x0 = {"epsilon": (x - s[k] * f) / a[k], "v_prediction": a[k] * x - s[k] * f, "sample": f}[process.kind]
        found.append((x - a[k] * x0) / s[k])
        x = a[k + 1] * x0 + s[k + 1] * found[-1]
    return x, torch.stack(found)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_draw_its_noise_and_their_gradients_are_those_of_a_loop_of_ddim(process):
    torch.manual_seed(0)
    model, x = student(process), 2.5 * torch.randn(3, 1, 8, 8)
    assert all(high > low for high, low in pairwise(model.decoders))
    upon, upon_noise = torch.randn(3, 1, 8, 8), torch.randn(3, 3, 1, 8, 8)
    sigma = torch.full((3,), model.decoders[0])
    both = [model.decoded(x, sigma, LABELS), by_hand(model, x, LABELS)]
    assert torch.equal(model(x, sigma, LABELS), both[0][0])
    weights = list(model.parameters())
    found = [torch.autograd.grad((x0 * upon).sum() + (eps * upon_noise).sum(), weights) for x0, eps in both]
    for mine, theirs in (both, found):
        largest = max(float(other.detach().abs().max()) for other in theirs)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * largest)


def test_the_term_adds_the_closed_form_of_the_kl_to_the_images_gradient():
    torch.manual_seed(0)
    model, x, gradient = student(), 2.5 * torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    sigma, count = torch.full((3,), 2.5), 12
    x0, noises = model.decoded(x, sigma, LABELS)
    m, v = noises.flatten(2).mean(-1), noises.flatten(2).var(-1, correction=0)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(m, v.sqrt()), normal(torch.zeros(()), torch.ones(()))).sum(0)
    wanted = torch.autograd.grad((x0 * gradient).sum() + 0.7 * kl.sum() / count, list(model.parameters()))
    term = NoiseTerm(model, 0.7)
    with torch.no_grad():
        term.images(x, sigma, LABELS)
    assert term.kl is None
    told = term.backward(term.images(x, sigma, LABELS), gradient, count)
    torch.testing.assert_close(told, kl.detach())
    for weight, other in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(weight.grad, other, rtol=1e-4, atol=1e-6)


def test_a_run_with_a_start_is_resumed_to_the_bit(tmp_path):
    whole = run("dmd2", tmp_path / "whole", **ONE)
    rows = [set(row) & {"regression/loss", "noise/kl"} for row in lines(tmp_path / "whole")[:3]]
    assert rows == [{"regression/loss"}, set(), {"noise/kl"}]  # of the first step of matching only the critic is
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    without(tmp_path / "parts", 2)
    again = run("dmd2", tmp_path / "parts", **ONE, resume_from_checkpoint="latest")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_step_in_parts_is_the_whole_one_and_the_term_is_in_it(tmp_path):
    def stepped(weight=50.0, **more):
        student = {"one_encoder": {"decoders": 3, "noise_weight": weight}}
        made = student_task(settings("dmd2", tmp_path, student=student, **more), tiny_teacher(), data(), Device("no"))
        seed_step(0, 1)
        figures = made.update(1)
        return figures["student/grad_norm"], figures.get("noise/kl")

    whole, parts, free = stepped(), stepped(micro_batch_size=3), stepped(weight=0)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=0)
    assert free[1] is None
    assert whole[0] > 2 * free[0]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_stored_student_draws_its_images_again_here_and_in_stock_diffusers(process, tmp_path, told):
    made = student(process)
    made.save_pretrained(tmp_path / "s", role="student", card=lambda record: model_card(metadata=record))
    read = Denoiser.from_pretrained(tmp_path / "s")
    plan = plan_sampling(read)
    assert (plan.levels, plan.evaluations, read.decoders) == ((made.decoders[0], 0.0), 1, made.decoders)
    images = sample_batch(read, plan, 0, range(3), 3)
    assert torch.equal(images, sample_batch(made, plan_sampling(made), 0, range(3), 3))
    record = json.loads((tmp_path / "s" / "diffdistill.json").read_text())
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(3)]
    more = {"class_labels": [0, 1, 2], "generator": generators, "output_type": "pt"}
    stock = told(tmp_path / "s")(batch_size=3, **record["call"], **more).images
    torch.testing.assert_close(2 * stock - 1, images.clamp(-1, 1), rtol=0, atol=1e-5)
    assert images.std() > 0.1
    card = (tmp_path / "s" / "README.md").read_text()
    assert 'custom_pipeline="student", trust_remote_code=True' in card
    assert "one pass of the encoder and 3 of the decoder" in card


def test_an_exported_student_is_drawn_alike_and_other_forms_are_refused(tmp_path):
    student().save_pretrained(tmp_path / "s", role="student")
    export(str(tmp_path / "s"), tmp_path / "copy", Wish("diffusers"))
    read = [Denoiser.from_pretrained(tmp_path / name) for name in ("s", "copy")]
    assert torch.equal(*(sample_batch(one, plan_sampling(one), 0, range(2), 2) for one in read))
    assert {"pipeline.py", "decoders.py"} <= parcel_of(str(tmp_path / "copy"), licence="mit").files.keys()
    for form in ("single-file", "lora", "comfyui"):
        with pytest.raises(ConfigError, match=f"several decoders of one encoder pass, and a file of --format {form}"):
            export(str(tmp_path / "s"), tmp_path / "x.safetensors", Wish(form))


@pytest.mark.parametrize("value", [[2.5], [2.5, 2.5], [1.0, 2.5], [3.0, 1.0], [2.5, 0.0], "2.5", None])
def test_a_record_of_decoders_that_are_none_is_damage(value):
    check_record({"role": "student", "levels": [2.5], "decoders": [2.5, 1.0]})
    with pytest.raises(CheckpointError, match="falling levels from its own"):
        check_record({"role": "student", "levels": [2.5], "decoders": value})


def test_a_record_of_decoders_beside_another_network_is_damage(tmp_path):
    Denoiser(tiny_uvit(3), EDM()).save_pretrained(tmp_path / "s", role="student", levels=[2.5])
    file = tmp_path / "s" / "diffdistill.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | {"decoders": [2.5, 1.0]})))
    with pytest.raises(CheckpointError, match=r"decoders that do not fit its network: .* UViT has no encoder"):
        Denoiser.from_pretrained(tmp_path / "s")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"student": {"one_encoder": {"decoders": 1}}}, "greater than or equal to 2"),
        ({"student": {"one_encoder": {}, "steps": 2}}, "set student.steps=1"),
        ({"student": {"one_encoder": {}, "levels": [2.5]}}, "set student.levels=null"),
        ({"student": {"one_encoder": {}, "timesteps": [999]}}, "set student.timesteps=null"),
        ({"student": {"one_encoder": {}, "shift": 2.0}}, "set student.shift=null"),
        ({"student": {"one_encoder": {}, "lora": {"rank": 2}}}, "set student.lora=null"),
        ({"student": {"one_encoder": {}, "consistency": {}}}, "set student.consistency=null"),
        ({"student": {"one_encoder": {}}, "method": {"consistency": {}}}, "set method.consistency=null"),
        ({"student": {"one_encoder": {}}, "speed": {"compile": "regional"}}, "set speed.compile=none"),
        ({"student": {"one_encoder": {}}, "parallel": {"strategy": "fsdp"}}, "set parallel.strategy=ddp"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_their_names(more, said, tmp_path):
    with pytest.raises(ValidationError, match=said):
        settings("dmd2", tmp_path, **more)


def test_a_consistency_model_has_no_decoders(tmp_path):
    with pytest.raises(ValidationError, match=r"set method\.name=dmd2"):
        settings("consistency", tmp_path, student={"one_encoder": {}})


@pytest.mark.parametrize(
    "network", [lambda: tiny_uvit(4), lambda: tiny_network("ddpmpp", augment=0)], ids=["uvit", "edm"]
)
def test_a_teacher_that_is_not_cut_in_two_is_refused_before_the_first_step(network, tmp_path):
    process = EDM() if network().__class__.__name__ == "UViT" else EDM(time_scale=1000.0)
    with pytest.raises(ConfigError, match=r"one encoder pass wants a network that is cut in two: \w+ has no encoder"):
        student_task(settings("dmd2", tmp_path, **ONE), Denoiser(network(), process), data(), Device("no"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_text import stable_diffusion, stable_diffusion_xl

    made = tmp_path_factory.mktemp("texts")
    stable_diffusion(made / "sd")
    stable_diffusion_xl(made / "sdxl")
    (made / "prompts.txt").write_text("a cat\na dog\n")
    return made


def test_a_student_of_texts_is_trained_and_drawn_alike_here_and_in_stock_diffusers(texts, tmp_path, told):
    import text_world

    task = text_world.task(text_world.settings(texts, student={"one_encoder": {"decoders": 4}}))
    assert [round(float(task.student.process.time(torch.tensor([s])))) for s in task.student.decoders] == [
        999,
        749,
        499,
        249,
    ]
    figures = task.update(0) | task.update(1)
    assert figures["noise/kl"] > 0 < figures["student/grad_norm"]
    task.student.save_pretrained(tmp_path / "s", role="student", levels=task.levels)
    read = Denoiser.from_pretrained(tmp_path / "s")
    plan = plan_sampling(read, prompts=["a cat", "a dog"])
    images = sample_batch(read, plan, 0, range(2), 2)
    mine = sample_batch(task.student, plan_sampling(task.student, prompts=["a cat", "a dog"]), 0, range(2), 2)
    assert torch.equal(images, mine)
    call = json.loads((tmp_path / "s" / "diffdistill.json").read_text())["call"]
    generators = [torch.Generator().manual_seed(plan.torch_seed(0, i)) for i in range(2)]
    stock = told(tmp_path / "s")(["a cat", "a dog"], **call, generator=generators, output_type="pt").images
    torch.testing.assert_close(2 * stock - 1, images.clamp(-1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "levels", "said"),
    [
        ("sdxl", [14.0, 1.0], "alone among those that draw texts, and this is a StableDiffusionXLPipeline"),
        ("sd", [14.0, 3.0, 0.5], "DDIM does not visit the times of 3 decoders in equal steps"),
    ],
)
def test_a_teacher_of_texts_whose_students_no_pipeline_samples_is_refused(texts, kind, levels, said):
    with pytest.raises(ConfigError, match=said):
        one_encoder(Denoiser.from_pretrained(texts / kind), levels)
