"""EDM's networks: equal to the original, in the original's layout, and at home in this package."""

import json

import pytest
import torch
from diffusers import ConsistencyModelPipeline
from edm_tiny import LAYOUTS, tiny_network
from torch.nn import functional as F

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.models import DhariwalUNet, SongUNet
from diffdistill.parts.edm.layers import Block, Resample
from diffdistill.parts.edm.preconditioning import Preconditioning
from diffdistill.pipelines.network import clone_network
from diffdistill.process import EDM
from diffdistill.sampling.generate import generate

# D at rows 2 and 6 of column 3, computed by the original networks with these weights and inputs (torch 2.13, CPU).
ORIGINAL = {
    ("ddpmpp", "edm"): (
        -0.565637, 0.161888, 0.636973, -0.469485, 0.256478, 0.615923,
        -0.107222, 0.223024, -0.276153, -0.00618, -0.331693, -0.208891,
    ),
    ("ncsnpp", "edm"): (
        -0.591193, 0.177361, 0.611626, -0.412495, 0.233165, 0.71033,
        -0.07761, 0.693613, -0.234168, 0.579088, -0.280355, 0.448949,
    ),
    ("adm", "edm"): (
        -0.232141, -0.582196, 0.976721, -0.734193, 0.450384, 0.668269,
        0.509158, 0.472693, 0.189238, 0.256527, -0.279863, -0.210777,
    ),
    ("ddpmpp", "vp"): (
        -0.432932, -0.87118, 1.324671, -1.598239, 0.883739, 0.066034,
        -4.31875, 5.096026, -1.506681, 0.890433, 6.793547, -2.385319,
    ),
    ("ncsnpp", "ve"): (
        -0.745412, 0.139148, 0.896993, -0.65238, 0.383205, 0.890952,
        -4.925494, 11.034069, -4.922075, 5.435755, 0.969545, 0.594594,
    ),
    ("adm", "iddpm"): (
        -1.446903, -0.889823, 0.686387, -1.571439, 1.120166, 0.448863,
        -9.089695, 1.060946, -4.960979, -2.792028, 6.821765, -3.301947,
    ),
}  # fmt: skip


def inputs():
    sigma = torch.tensor([0.3, 4.0])
    x = torch.sin(torch.arange(2 * 3 * 8 * 8, dtype=torch.float64) * 1.3).reshape(2, 3, 8, 8).float()
    labels = {
        "class_labels": torch.tensor([2, 0]),
        "augment_labels": torch.sin(torch.arange(18, dtype=torch.float64)).reshape(2, 9).float(),
    }
    return x * (1 + sigma[:, None, None, None]), sigma, labels


@pytest.mark.parametrize(("layout", "kind"), ORIGINAL)
@torch.no_grad()
def test_the_denoiser_is_the_original_one(layout, kind):
    x, sigma, labels = inputs()
    x0 = Denoiser(tiny_network(layout, kind), EDM())(x, sigma, labels)
    tolerance = 5e-6 if kind == "edm" else 1e-4  # x0 = x -+ sigma N: sizes up to 10, and c_noise up to 1000
    torch.testing.assert_close(
        x0[:, :, 2::4, 3].flatten(), torch.tensor(ORIGINAL[layout, kind]), rtol=0, atol=tolerance
    )


def test_the_published_networks_have_the_published_sizes():
    with torch.device("meta"):
        cifar = SongUNet(channel_mult=(2, 2, 2), label_dim=10, num_class_embeds=10, augment_dim=9)
        imagenet = DhariwalUNet(label_dim=1000, num_class_embeds=1000)
    assert sum(p.numel() for p in cifar.parameters()) == 55_735_299
    assert sum(p.numel() for p in imagenet.parameters()) == 295_899_267
    shapes = {name: tuple(p.shape) for name, p in cifar.named_parameters()}
    assert shapes["enc.32x32_conv.weight"] == (128, 3, 3, 3)
    assert shapes["enc.16x16_down.skip.weight"] == (256, 256, 1, 1)
    assert shapes["enc.16x16_block3.qkv.weight"] == (768, 256, 1, 1)
    assert shapes["dec.8x8_in0.proj.weight"] == (256, 256, 1, 1)
    assert shapes["dec.16x16_block4.norm2.bias"] == (256,)
    assert shapes["dec.32x32_aux_conv.weight"] == (3, 256, 3, 3)
    assert shapes["map_augment.weight"] == (128, 9)
    assert "dec.16x16_block3.qkv.weight" not in shapes
    shapes = {name: tuple(p.shape) for name, p in imagenet.named_parameters()}
    assert shapes["map_label.weight"] == (768, 1000)
    assert shapes["enc.32x32_block0.affine.weight"] == (768, 768)
    assert "enc.32x32_down.skip.weight" not in shapes
    assert shapes["out_conv.weight"] == (3, 192, 3, 3)


@torch.no_grad()
def test_the_pyramid_of_a_level_is_made_of_the_one_above():
    """NCSN++: p_0 = the image, p_(l+1) = (h + down(p_l)) / sqrt 2, which the level works on and sends across."""
    network = tiny_network("ncsnpp", channel_mult=[1, 2, 2])
    x, _, _ = inputs()
    e = torch.sin(torch.arange(2.0 * network.embedding_channels)).reshape(2, -1)
    enc, expected = network.enc, []
    h = enc["8x8_conv"](x)
    expected.append(h)
    h = enc["8x8_block0"](h, e)
    expected.append(h)
    pyramid = x
    for size in (4, 2):
        h = pyramid = (enc[f"{size}x{size}_down"](h, e) + enc[f"{size}x{size}_aux_residual"](pyramid)) / 2**0.5
        expected.append(h)
        h = enc[f"{size}x{size}_block0"](h, e)
        expected.append(h)
    bottom, skips = network.encode(x, e)
    assert [tuple(skip.shape[1:]) for skip in skips] == [
        (16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 2, 2), (32, 2, 2),
    ]  # fmt: skip
    for got, want in zip([*skips, bottom], [*expected, h], strict=True):
        torch.testing.assert_close(got, want)


def test_resampling_with_a_box_averages_and_repeats_and_any_filter_keeps_a_plane():
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(Resample("down", (1, 1))(x), F.avg_pool2d(x, 2))
    assert torch.equal(Resample("up", (1, 1))(x), x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    inside = Resample("down", (1, 3, 3, 1))(ramp)[0, 0, 2, 1:-1]
    torch.testing.assert_close(inside, torch.arange(2.5, 14, 2))  # the middle of each pair
    torch.testing.assert_close(Resample("up", (1, 3, 3, 1))(ramp)[0, 0, 9, 5], torch.tensor(2.25))


def test_attention_is_softmax_of_q_k_with_heads_outermost():
    block = Block(8, 8, 4, heads=2, project_skip=True, adaptive=True, skip_scale=1.0, eps=1e-5, dropout=0.0)
    torch.nn.init.normal_(block.proj.weight)
    x = torch.randn(2, 8, 3, 3)
    q, k, v = (
        torch.stack([block.qkv(block.norm2(x))[:, 12 * h + 3 * c + part] for h in (0, 1) for c in range(4)], dim=1)
        for part in range(3)
    )
    heads = []
    for h in (0, 1):
        qh, kh, vh = (t[:, 4 * h : 4 * h + 4].flatten(2) for t in (q, k, v))
        weights = (qh.transpose(1, 2) @ kh / 2).softmax(-1)
        heads.append(vh @ weights.transpose(1, 2))
    expected = block.proj(torch.cat(heads, dim=1).reshape(x.shape))
    torch.testing.assert_close(block.attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "sign"), [("vp", -1), ("ve", 1), ("iddpm", -1)])
@torch.no_grad()
def test_other_preconditionings_are_those_of_the_table(kind, sign):
    """D = x + s sigma N(c_in x, c_noise), for networks seen as F of EDM's (2206.00364, Table 1)."""
    x, sigma, labels = inputs()
    ours = tiny_network("adm", kind)
    inner = tiny_network("adm", "edm") if kind != "iddpm" else ours
    preconditioning = Preconditioning(kind)
    level = sigma.double()
    c_in = torch.ones(2) if kind == "ve" else (1 / (level**2 + 1).sqrt()).float()
    if kind == "vp":  # sigma(t) of the schedule is undone
        t = preconditioning.noise_input(level) / 999
        torch.testing.assert_close((19.9 * t**2 / 2 + 0.1 * t).exp() - 1, level**2)
    if kind == "iddpm":
        levels = preconditioning.iddpm_levels
        assert (levels.diff() < 0).all()
        nearest = [min(range(1001), key=lambda j: abs(float(levels[j]) - s)) for s in level]
        assert preconditioning.noise_input(level).tolist() == [999 - j for j in nearest]
    embedding = inner.embed(
        preconditioning.noise_input(level).float(), F.one_hot(labels["class_labels"], 4).float(),
        labels["augment_labels"],
    )  # fmt: skip
    features, skips = inner.encode(x * c_in[:, None, None, None], embedding)
    output = inner.head(inner.decode(features, skips, embedding))[:, :3]
    expected = x + sign * sigma[:, None, None, None] * output
    torch.testing.assert_close(Denoiser(ours, EDM())(x, sigma, labels), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("beta_d", "beta_min", "highest"), [(19.9, 0.1, 152.17), (5.0, 0.3, 3.930), (0.5, 0.2, 0.754)]
)
def test_a_vp_network_knows_the_levels_of_its_schedule(beta_d, beta_min, highest):
    """sigma^2 = 1 / abar - 1, abar = exp(-integral of beta_min + beta_d t from 0 to t) (2011.13456, eq. 32 and 33)."""
    vp = Preconditioning("vp", beta_d=beta_d, beta_min=beta_min)
    bounds = vp.range(epsilon_t=0.01)
    for t, sigma in zip((0.01, 1.0), bounds, strict=True):
        middles = (torch.arange(1000, dtype=torch.float64) + 0.5) * t / 1000
        abar = (-(beta_min + beta_d * middles) * t / 1000).exp().prod()
        assert sigma == pytest.approx(float((1 / abar - 1).sqrt()), rel=1e-6)
    assert bounds[1] == pytest.approx(highest, rel=1e-3)
    assert vp.noise_input(torch.tensor(bounds, dtype=torch.float64)).tolist() == pytest.approx([9.99, 999.0])


def test_an_unknown_preconditioning_is_a_sentence():
    with pytest.raises(ConfigError, match="preconditioning 'flow' is unknown; use edm, vp, ve, iddpm"):
        Preconditioning("flow")


@pytest.mark.parametrize(
    "setting", [{"embedding_type": "fourrier"}, {"encoder_type": "skip"}], ids=["embedding_type", "encoder_type"]
)
def test_an_unknown_kind_of_network_is_a_sentence(setting):
    with pytest.raises(ConfigError, match=r"(embedding|encoder)_type '\w+' of a SongUNet is unknown; use"):
        tiny_network("ddpmpp", **setting)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_no_class_is_the_zero_vector_and_no_augmentation_is_zeros(layout):
    x, sigma, _ = inputs()
    denoise = Denoiser(tiny_network(layout), EDM())
    after_the_last = denoise(x, sigma, torch.tensor([4, 4]))
    assert torch.equal(after_the_last, denoise(x, sigma, None))
    assert not torch.allclose(after_the_last, denoise(x, sigma, torch.tensor([1, 1])), atol=1e-3)
    zeros = denoise(x, sigma, {"class_labels": torch.tensor([4, 4]), "augment_labels": torch.zeros(2, 9)})
    assert torch.equal(after_the_last, zeros)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_saved_network_gives_the_same_numbers(layout, tmp_path):
    x, sigma, labels = inputs()
    model = Denoiser(tiny_network(layout), EDM(), null_class=None)
    model.save_pretrained(tmp_path / "model", role="teacher")
    again = Denoiser.from_pretrained(str(tmp_path / "model"))
    assert again.num_classes == 4
    assert again.metadata["network_module"] == type(model.network).__module__
    assert torch.equal(model(x, sigma, labels), again(x, sigma, labels))


def test_diffusers_samples_the_folder_once_the_module_is_imported(tmp_path):
    model = Denoiser(tiny_network("ncsnpp"), EDM())
    model.save_pretrained(tmp_path / "student", role="student", levels=(2.5,))
    pipe = ConsistencyModelPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    made = pipe(batch_size=4, class_labels=[0, 1, 2, 3], num_inference_steps=1, generator=seeds, output_type="np")
    ours, _ = next(generate(str(tmp_path / "student"), num_images=4, seed=0))
    difference = torch.from_numpy(made.images).permute(0, 3, 1, 2) * 255 - ours
    assert difference.abs().max() < 0.51


@pytest.mark.parametrize(("old", "layout"), [("edm_song", "ncsnpp"), ("edm_dhariwal", "adm")])
@torch.no_grad()
def test_a_folder_saved_when_a_network_had_a_module_of_its_own_still_loads(old, layout, tmp_path):
    x, sigma, labels = inputs()
    model = Denoiser(tiny_network(layout), EDM())
    model.save_pretrained(tmp_path / "student", role="student", levels=(2.5,))
    for name in ("model_index.json", "diffdistill.json"):
        file = tmp_path / "student" / name
        text = file.read_text("utf-8")
        assert '"diffdistill.models"' in text
        earlier = json.loads(text.replace('"diffdistill.models"', f'"diffdistill.models.{old}"'))
        for digests in ("own_sha256", "sha256"):  # which such a folder had otherwise
            earlier.pop(digests, None)
        file.write_text(json.dumps(earlier), "utf-8")
    assert torch.equal(Denoiser.from_pretrained(str(tmp_path / "student"))(x, sigma, labels), model(x, sigma, labels))
    stock = ConsistencyModelPipeline.from_pretrained(tmp_path / "student").unet
    assert torch.equal(Denoiser(stock.eval(), EDM())(x, sigma, labels), model(x, sigma, labels))


def test_the_middle_answers_to_the_name_that_other_unets_give_it():
    x, sigma, labels = inputs()
    model = Denoiser(tiny_network("adm"), EDM())
    x0, (middle,) = model.tapped(x, sigma, labels, ["mid_block"])
    (early,) = model.features(x, sigma, labels, ["dec.4x4_in1"])
    assert middle.shape == (2, 128, 4, 4)
    assert torch.equal(middle, early)
    assert torch.equal(x0, model(x, sigma, labels))
    with pytest.raises(ConfigError, match=r"enc\.8x8_block0"):
        model.check_taps(["nowhere"])


@torch.no_grad()
def test_a_student_starts_as_its_teacher_without_the_null_class():
    x, sigma, labels = inputs()
    network = tiny_network("ddpmpp")
    network.register_to_config(num_class_embeds=5)
    teacher = Denoiser(network, EDM(), null_class=4)
    assert teacher.num_classes == 4
    student = Denoiser(clone_network(network, 4).eval(), EDM())
    assert student.num_classes == 4
    assert torch.equal(teacher(x, sigma, labels), student(x, sigma, labels))
    guided = teacher.guided(x, sigma, labels["class_labels"], 2.0)
    cond, none = teacher(x, sigma, labels["class_labels"]), teacher(x, sigma, None)
    torch.testing.assert_close(guided, none + 2 * (cond - none))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_parameter_gets_a_gradient(layout):
    x, sigma, labels = inputs()
    network = tiny_network(layout)
    Denoiser(network, EDM())(x, sigma, labels).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("layout", "kind"), [("ncsnpp", "edm"), ("adm", "iddpm")])
@torch.no_grad()
def test_torch_compile_sees_one_graph(layout, kind):
    network = tiny_network(layout, kind)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([-50.0, 300.0]), torch.tensor([0, 3])
    (ours,) = compiled(x, time, labels, return_dict=False)
    assert torch.equal(ours, network(x, time, labels).sample)
