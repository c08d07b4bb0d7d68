"""Two halves: Gaussian denoisers in closed form, denoisers that remember, halves that overlap, the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import tiny_teacher

from diffdistill import Denoiser
from diffdistill.cli import main
from diffdistill.data import load_images
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.run import evaluate
from diffdistill.evaluation.two_halves import telling, two_halves

PIXELS = 6


def law(seed):
    g = torch.Generator().manual_seed(seed)
    mean, root = torch.randn(PIXELS, generator=g), torch.randn(PIXELS, PIXELS, generator=g) / 2
    return mean.double(), (root @ root.T).double()


def exact(mean, covariance):
    """E[x0 | x_t] of N(mean, covariance): mean + C (C + sigma^2)^-1 (x_t - mean)."""

    def denoise(x, sigma, rows):
        gain = gain_of(covariance, float(sigma[0]))
        return (mean + (x.double().flatten(1) - mean) @ gain.T).reshape(x.shape).float()

    return denoise


def gain_of(covariance, level):
    return torch.linalg.solve(covariance + level**2 * torch.eye(PIXELS, dtype=torch.float64), covariance, left=False)


def expected(level, data, first, second):
    """E<a, b> / sqrt(E|a|^2 E|b|^2) of the two denoisers' words about x0 + sigma eps, and of their residuals."""
    (middle, covariance), laws = data, (first, second)
    noised = covariance + level**2 * torch.eye(PIXELS, dtype=torch.float64)
    unit = torch.eye(PIXELS, dtype=torch.float64)
    gains = [gain_of(c, level) for _, c in laws]
    shifts = [(unit - gain) @ (mean - middle) for (mean, _), gain in zip(laws, gains, strict=True)]

    def cosine(maps, shifts):
        def product(i, j):
            return float((maps[i] @ noised * maps[j]).sum() + shifts[i] @ shifts[j])

        return product(0, 1) / (product(0, 0) * product(1, 1)) ** 0.5, product(0, 0)

    agreement, size = cosine(gains, shifts)
    residuals, _ = cosine([unit - gain for gain in gains], [-shift for shift in shifts])
    return agreement, residuals, (size / float(covariance.trace())) ** 0.5


def test_two_gaussian_denoisers_in_closed_form():
    data, first, second = law(0), law(1), law(2)
    g = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(data[1])
    images = (data[0] + torch.randn(6000, PIXELS, generator=g, dtype=torch.float64) @ root.T).float()
    images = images.reshape(-1, 1, 2, 3)
    levels, middle = (0.1, 0.7, 3.0), data[0].float().reshape(1, 2, 3)
    found = two_halves(exact(*first), exact(*second), images, levels, mean=middle, batch_size=1000)
    for level, one in zip(levels, found, strict=True):
        agreement, residuals, says = expected(level, data, first, second)
        assert abs(float(one.agreement) - agreement) < 3.5 * one.agreement.standard_error + 1e-6
        assert abs(float(one.residuals) - residuals) < 3.5 * one.residuals.standard_error + 1e-6
        assert one.agreement.standard_error < 0.02
        assert one.says[0] == pytest.approx(says, rel=0.05)
    same = two_halves(exact(*first), exact(*first), images[:50], levels)
    assert [float(one.agreement) for one in same] == pytest.approx([1, 1, 1])


def test_the_error_is_the_spread_over_draws():
    data, first, second = law(0), law(1), law(2)
    root = torch.linalg.cholesky(data[1])
    values, errors = [], []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        images = (data[0] + torch.randn(100, PIXELS, generator=g, dtype=torch.float64) @ root.T).float()
        found = two_halves(
            exact(*first), exact(*second), images.reshape(-1, 1, 2, 3), [1.0],
            mean=data[0].float().reshape(1, 2, 3), seed=seed + 100,
        )[0]  # fmt: skip
        values.append(float(found.agreement))
        errors.append(found.agreement.standard_error)
    assert float(torch.tensor(values).std()) / (sum(errors) / 60) == pytest.approx(1, abs=0.3)


def test_the_noise_of_an_image_is_the_same_in_any_batch():
    images = torch.randn(5, 1, 5, 5, generator=torch.Generator().manual_seed(0))  # 25: not a multiple of 16
    seen = {1: [], 2: [], 5: []}
    for size, states in seen.items():
        two_halves(lambda x, sigma, rows, kept=states: kept.append(x) or x, lambda x, *_: x, images, [1.0],
                   batch_size=size)  # fmt: skip
    one, two, five = (torch.cat(states) for states in seen.values())
    assert torch.equal(one, two)
    assert torch.equal(one, five)


def remembering(images):
    """The exact denoiser of a few images: their mean, weighed by how near each is."""
    flat = images.flatten(1)

    def denoise(x, sigma, rows):
        weights = (-torch.cdist(x.flatten(1), flat).square() / (2 * sigma[:, None] ** 2)).softmax(1)
        return (weights @ flat).reshape(x.shape)

    return denoise


def test_models_that_remember_have_nothing_in_common():
    """Nor can their residuals show it: (v + sigma^2) / (2 v + sigma^2) there."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(420, 1, 16, 16, generator=g)
    first, second = remembering(images[:10]), remembering(images[10:20])
    for one in two_halves(first, second, images[20:], [0.5, 1.0]):
        assert float(one.agreement) == pytest.approx(0, abs=0.05)
        assert float(one.residuals) == pytest.approx((1 + one.sigma**2) / (2 + one.sigma**2), abs=0.02)
    middle, knows = torch.zeros(1, 16, 16), lambda x, sigma, _: x / (1 + sigma[0] ** 2)
    certain = two_halves(knows, first, images[20:], [0.5, 100.0], mean=middle)
    assert certain[1].says[0] < 0.05 < certain[1].says[1]  # the second has its own mean yet
    assert [one.sigma for one in telling(certain)] == [0.5]
    with pytest.raises(DataError, match="two halves are compared on 1 images"):
        two_halves(first, second, images[:1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of images a, b, held (three classes), and teachers whose records say that they were trained on them."""
    folder = tmp_path_factory.mktemp("halves")
    draw = np.random.default_rng(0)
    for name in ("a", "b", "held"):
        for label in range(3):
            (folder / name / str(label)).mkdir(parents=True)
            for i in range(4):
                pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / str(label) / f"{i}.png")
    shutil.copytree(folder / "b", folder / "mixed")
    shutil.copy(folder / "a" / "0" / "0.png", folder / "mixed" / "1" / "9.png")
    halves = (("a", "a", None), ("b", "b", None), ("mixed", "mixed", None), ("first", "a", 8))
    for seed, (name, data, limit) in enumerate(halves):
        run = folder / f"of-{name}"
        run.mkdir()
        data = {"path": str(folder / data), "split": "train", "limit": limit}
        (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
        found = load_images(data["path"], limit=limit)
        record = {"path": found.name, "fingerprint": found.fingerprint}
        tiny_teacher(seed).save_pretrained(run / "model", role="teacher", data=record)
    shutil.copytree(folder / "of-a", folder / "copy")
    tiny_teacher(4).save_pretrained(folder / "of-unknown" / "model", role="teacher")
    tiny_teacher().save_pretrained(folder / "student" / "model", role="student", levels=(2.5,))
    law = {"law": "student_t", "dimension": 128.0}
    tiny_teacher(5).save_pretrained(folder / "heavy" / "model", role="teacher", noise=law)
    return folder


def words(place, first, second, reference, *more):
    given = ("evaluate", "--model", place / first / "model", "--other-half", place / second / "model")
    given = (*given, "--reference", place / reference)
    return [str(word) for word in (*given, "--metrics", "two_halves", "--device", "cpu", *more)]


def test_two_folders_are_compared_on_held_out_images(place, tmp_path, capsys):
    out = tmp_path / "answer.json"
    assert main(words(place, "of-a", "of-b", "held", "--json", out, "--num-images", "5")) == 0
    told = capsys.readouterr()
    assert "Agreement of two halves, least of any level" in told.out
    assert "not known" not in told.err
    result = json.loads(out.read_text())
    entry = result["metrics"]["two_halves"]
    assert entry["n"] == 5
    assert result["protocol"]["reference"]["name"] == str(place / "held")
    assert result["protocol"]["other_half"] == str(place / "of-b" / "model")
    models = [Denoiser.from_pretrained(str(place / name / "model")) for name in ("of-a", "of-b")]
    held = load_images(str(place / "held"))
    chosen = [0, 2, 4, 7, 9]  # evenly spaced of 12
    direct = two_halves(
        *(lambda x, sigma, rows, model=model: model(x, sigma, held.labels[chosen][rows]) for model in models),
        held.images[chosen] / 127.5 - 1,
    )
    assert [level["sigma"] for level in entry["levels"]] == [one.sigma for one in direct]
    ours = [level["agreement"] for level in entry["levels"]]
    assert ours == pytest.approx([float(one.agreement) for one in direct], abs=1e-5)
    counted = [float(one.agreement) for one in telling(direct)]
    assert entry["two_halves"] == pytest.approx(sum(counted) / len(counted), abs=1e-5)
    assert entry["two_halves_least"] == pytest.approx(min(counted), abs=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "reference", "told"),
    [
        ("of-a", "of-a", "held", "is given as both halves"),
        ("of-a", "copy", "held", "were trained on the same images"),
        ("of-a", "of-first", "held", "8 images of"),
        ("of-a", "of-mixed", "held", "1 images of"),
        ("of-a", "of-b", "b", "was trained on"),
        ("of-unknown", "of-b", "mixed", "12 images of"),
        ("student", "of-b", "held", "which makes images and does not denoise, and metric 'two_halves' compares"),
        ("of-a", "heavy", "held", "compares what models say under Gaussian noise; give models of noise.law=gaussian"),
    ],
)
def test_halves_that_overlap_and_what_is_no_denoiser_are_refused(place, first, second, reference, told, capsys):
    assert main(words(place, first, second, reference)) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "score" not in said  # that is what distillation needs


def test_captions_are_asked_for_where_models_were_trained_with_them(place, tmp_path, capsys):
    pytest.importorskip("transformers")
    from tiny_text import stable_diffusion

    one, other = str(stable_diffusion(tmp_path / "one")), str(tmp_path / "other")
    shutil.copytree(one, other)
    given = ["evaluate", "--model", one, "--other-half", other, "--metrics", "two_halves", "--device", "cpu"]
    (tmp_path / "held").mkdir()
    for i in range(2):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "held" / f"{i}.png")
    assert main([*given, "--reference", str(tmp_path / "held")]) == 2
    said = capsys.readouterr().err
    assert "has no captions, and a model was trained with them: give images with captions" in said


def test_a_setting_of_sampling_is_refused_from_python_too(place):
    halves = {"other_half": str(place / "of-b" / "model"), "reference": str(place / "held"), "metrics": ["two_halves"]}
    with pytest.raises(ConfigError, match="--steps is of images that are drawn, and two_halves draws none"):
        evaluate(model=str(place / "of-a" / "model"), steps=4, **halves)
    with pytest.raises(ConfigError, match=r"@4 of '.*' is of images that are drawn"):
        evaluate(model=str(place / "of-a" / "model") + "@4", **halves)


def test_what_is_not_known_is_said(place, capsys):
    assert main(words(place, "of-unknown", "of-b", "held", "--num-images", "4")) == 0
    assert (
        f"whether '{place / 'of-unknown' / 'model'}' has images of the other half, or the held-out ones, is not known"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--metrics", "two_halves"], "give --other-half MODEL, or leave it out"),
        (["--metrics", "fid", "--other-half", "x"], "--other-half is of the metric two_halves"),
        (["--metrics", "two_halves", "--other-half", "x", "--signal-leak", "auto"], "two_halves draws none"),
        (["--metrics", "two_halves", "--other-half", "x", "--guidance-scale", "2"], "two_halves draws none"),
        (["--metrics", "two_halves", "--other-half", "x", "--prompt", "a"], "--prompt is of images that are drawn"),
        (["@4", "--metrics", "two_halves", "--other-half", "x"], "is of images that are drawn, and two_halves draws"),
    ],
)
def test_flags_that_do_not_go_together(place, flags, told, capsys):
    steps, flags = (flags[0], flags[1:]) if flags[0].startswith("@") else ("", flags)
    given = ["evaluate", "--model", str(place / "of-a" / "model") + steps, "--reference", str(place / "held")]
    assert main([*given, *flags]) == 2
    assert told in capsys.readouterr().err
