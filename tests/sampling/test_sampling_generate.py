"""Generating: labels, levels, and images that depend on (seed, i) alone."""

import pytest
import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.pixel.schedule import stock_levels
from diffdistill.process import EDM
from diffdistill.sampling.generate import generate, sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling

CLASSES = 3


def tiny_denoiser(classes=CLASSES, null=True, role="teacher", levels=(), channels=1, dropout=0.0):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=None if classes is None else classes + null,
        dropout=dropout,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    null_class = classes if classes is not None and null else None
    return Denoiser(network, EDM(), null_class=null_class, metadata={"role": role, "levels": list(levels)}).eval()


def images(model, count, **settings):
    return torch.cat([batch for batch, _ in generate(model, num_images=count, **settings)])


@pytest.fixture(scope="module")
def teacher():
    return tiny_denoiser()


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_images_are_bit_identical_for_every_batch_size(teacher, sampler):
    whole = images(teacher, 70, batch_size=70, steps=4, sampler=sampler)
    for batch_size in (16, 17, 33, 64, 500):
        assert torch.equal(images(teacher, 70, batch_size=batch_size, steps=4, sampler=sampler), whole)


def test_small_batches_change_no_more_than_the_rounding(teacher):
    whole = images(teacher, 20, steps=4).int()
    for batch_size in (1, 3):
        assert (images(teacher, 20, batch_size=batch_size, steps=4).int() - whole).abs().max() <= 1


def test_one_image_alone_equals_the_same_image_among_many(teacher):
    many = images(teacher, 40, steps=3, seed=9)
    assert torch.equal(images(teacher, 1, steps=3, seed=9, first=37), many[37:38])
    assert torch.equal(images(teacher, 5, steps=3, seed=9, first=30), many[30:35])


def test_seeds_give_other_images_and_the_same_seed_the_same(teacher):
    first = images(teacher, 4, steps=2)
    assert torch.equal(first, images(teacher, 4, steps=2))
    assert not torch.equal(first, images(teacher, 4, steps=2, seed=1))


def test_images_are_uint8_on_the_cpu_in_the_model_shape():
    batches = list(generate(tiny_denoiser(classes=None, channels=3), num_images=5, batch_size=2, steps=1))
    assert [tuple(batch.shape) for batch, _ in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert all(batch.dtype == torch.uint8 and labels is None for batch, labels in batches)


def test_labels_are_balanced_by_default_and_cycle_when_given(teacher):
    def labels(**settings):
        return torch.cat([b for _, b in generate(teacher, num_images=7, batch_size=3, steps=1, **settings)]).tolist()

    assert labels() == [0, 1, 2, 0, 1, 2, 0]
    assert labels(first=2) == [2, 0, 1, 2, 0, 1, 2]
    assert labels(class_labels=[2, 2, 0]) == [2, 2, 0, 2, 2, 0, 2]


def test_the_label_decides_the_image_and_not_its_neighbours(teacher):
    mixed = images(teacher, 3, steps=2, class_labels=[0, 1, 2])
    same = images(teacher, 3, steps=2, class_labels=[1])
    assert torch.equal(mixed[1], same[1])
    assert not torch.equal(mixed[0], same[0])


def test_guidance_of_one_is_the_plain_model_and_more_is_not(teacher):
    plain = images(teacher, 3, steps=2)
    assert torch.equal(plain, images(teacher, 3, steps=2, guidance_scale=1.0))
    assert not torch.equal(plain, images(teacher, 3, steps=2, guidance_scale=3.0))


def test_dropout_is_off_while_sampling_and_the_mode_is_put_back():
    model = tiny_denoiser(dropout=0.5).train()
    assert torch.equal(images(model, 2, steps=2), images(model, 2, steps=2))
    assert model.training


def test_the_global_random_state_is_left_alone(teacher):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    images(teacher, 2, steps=2, sampler="ddpm")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("classes", "channels"), [(3, 1), (None, 3)])
@pytest.mark.parametrize("steps", [1, 2])
def test_student_makes_the_images_of_stock_diffusers(tmp_path, classes, channels, steps):
    student = tiny_denoiser(classes, null=False, role="student", levels=stock_levels(steps, 2.5), channels=channels)
    student.save_pretrained(tmp_path / "student", role="student", levels=student.levels)
    pipe = ConsistencyModelPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        batch_size=6,
        num_inference_steps=steps,
        class_labels=None if classes is None else [i % classes for i in range(6)],
        generator=[torch.Generator().manual_seed(image_seed(4, i)) for i in range(6)],
        output_type="pt",
    ).images
    loaded = Denoiser.from_pretrained(str(tmp_path / "student"))
    plan = plan_sampling(loaded)
    ours = sample_batch(loaded, plan, 4, range(6), 64)
    assert ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-5


def test_a_student_takes_its_levels_or_the_first_alone():
    student = tiny_denoiser(null=False, role="student", levels=(2.5, 0.8))
    assert plan_sampling(student).levels == (2.5, 0.8, 0.0)
    assert plan_sampling(student, steps=1).levels == (2.5, 0.0)
    assert plan_sampling(student).evaluations == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0; use 1 to 10000"),
        (
            {"sampler": "magic"},
            r"sampler 'magic' is not known; it must be one of .*heun.*, or FILE\.py:NAME",
        ),
        ({"class_labels": [0, 3]}, "class label 3 is out of range; this model has classes 0 to 2"),
        ({"class_labels": [-1]}, "class label -1 is out of range"),
        ({"class_labels": []}, "the list of class labels is empty"),
        ({"num_images": 0}, "0 images in batches of 64"),
        ({"batch_size": 0}, "8 images in batches of 0"),
    ],
)
def test_wrong_requests_are_refused_before_the_first_image(teacher, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        generate(teacher, **{"num_images": 8, **settings})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 3}, "steps is 3 and this student was trained for 1 step; use that, or distil another"),
        ({"sampler": "heun"}, "sampler 'heun' needs a denoiser at every level"),
        ({"guidance_scale": 2.0}, "a student has its teacher's guidance built in"),
    ],
)
def test_a_student_refuses_what_it_was_not_trained_for(settings, sentence):
    student = tiny_denoiser(null=False, role="student", levels=(2.5,))
    with pytest.raises(ConfigError, match=sentence):
        generate(student, num_images=1, **settings)


def test_unconditional_models_refuse_labels_and_guidance():
    model = tiny_denoiser(classes=None)
    with pytest.raises(ConfigError, match="this model is unconditional"):
        generate(model, num_images=1, class_labels=[0])
    with pytest.raises(ConfigError, match="guidance scale 2 needs a model with a null class"):
        generate(model, num_images=1, guidance_scale=2.0)


def test_a_folder_that_is_no_model_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError):
        generate(str(tmp_path), num_images=1)
