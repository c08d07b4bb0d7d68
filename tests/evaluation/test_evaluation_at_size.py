"""What makes an evaluation of many images fast changes no figure: blocks, tiles, shared pairs, an error by formula."""

from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffdistill.data import workers
from diffdistill.evaluation import draws, frechet_error, kernel, moments, resize
from diffdistill.evaluation.context import Context, Generated
from diffdistill.evaluation.draws import content_keys, highest, lowest, ranked
from diffdistill.evaluation.frechet import fit, frechet_terms
from diffdistill.evaluation.frechet_error import bootstrap_error, delta_error
from diffdistill.evaluation.kernel import kernel_distance
from diffdistill.evaluation.moments import Gaussian, Moments
from diffdistill.evaluation.reference import Reference
from diffdistill.evaluation.subjects import Drawing, image_subject
from diffdistill.parts.bench.measure import peak_bytes


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def shuffled(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(5))]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, stripes and tiles so small that a small problem has several of each, and a rest."""
    monkeypatch.setattr(moments, "BLOCK", 5)
    monkeypatch.setattr(moments, "STRIPE", 3)
    monkeypatch.setattr(kernel, "TILE", 16)
    monkeypatch.setattr(kernel, "STRIPE", 6)
    monkeypatch.setattr(kernel, "FEW", 5)
    monkeypatch.setattr(frechet_error, "BLOCK", 7)
    monkeypatch.setattr(draws, "ENTRIES", 40)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("n", [2, 4, 5, 6, 23])
@pytest.mark.parametrize("size", [1, 4, 23])
def test_moments_are_the_sums_over_images(n: int, size: int):
    x = normal(n, 7, 0, shift=3) * torch.arange(1, 8)
    x[: n // 2] += 50  # the first blocks lie elsewhere
    streamed = Moments(7)
    for part in x.split(size):
        streamed.update(part)
        if streamed.n > 1:
            streamed.gaussian()  # a look on the way
    found = streamed.gaussian()
    mean = [sum(x[i, j].item() for i in range(n)) / n for j in range(7)]
    for j, k in product(range(7), repeat=2):
        exact = sum((x[i, j].item() - mean[j]) * (x[i, k].item() - mean[k]) for i in range(n)) / (n - 1)
        assert found.covariance[j, k].item() == pytest.approx(exact, rel=1e-11, abs=1e-11)
    assert torch.equal(found.covariance, found.covariance.T)
    assert found.mean.tolist() == pytest.approx(mean, rel=1e-13)
    assert (found.rows is not None) == (n <= 7)


@pytest.mark.parametrize("size", [1, 16, 333])
def test_batches_do_not_change_a_bit_of_the_moments(size: int):
    x = normal(1100, 300, 1)
    one, other = Moments(300).update(x), Moments(300)
    for part in x.split(size):
        other.update(part)
    assert torch.equal(one.gaussian().covariance, other.gaussian().covariance)
    assert torch.equal(one.gaussian().mean, other.gaussian().mean)


def by_pairs(x: Tensor, y: Tensor) -> float:
    """MMD^2 as a sum over pairs of images."""

    def k(a: Tensor, b: Tensor) -> float:
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / len(a) + 1) ** 3

    def within(rows: Tensor) -> float:
        return sum(k(a, b) for a, b in combinations(rows, 2)) / (len(rows) * (len(rows) - 1) / 2)

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("n", "m"), [(45, 45), (45, 20), (20, 45)])
@pytest.mark.parametrize("subsets", [2, 30])  # fewer pairs in all subsets than in the sets, and more
def test_kid_is_the_mean_over_its_subsets_pair_by_pair(n: int, m: int, subsets: int):
    x, y = normal(n, 3, 2), normal(m, 3, 3, 1.3)
    size = 8
    values = []
    for word in range(7 * subsets, 8 * subsets):
        mine, theirs = ranked(content_keys(x), word)[:size], ranked(content_keys(y), word)[-size:]
        values.append(by_pairs(x[mine], y[theirs]))
    exact = torch.tensor(values, dtype=torch.float64)
    part = size / min(n, m)
    value, error = kernel_distance(x, y, subsets=subsets, subset_size=size, seed=7)
    assert value == pytest.approx(float(exact.mean()), rel=1e-10, abs=1e-12)
    assert error == pytest.approx(float(exact.std()) * (part / (1 - part) + 1 / subsets) ** 0.5, rel=1e-9)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("subsets", [2, 30])
def test_the_order_of_images_does_not_change_a_bit_of_kid(subsets: int):
    x, y = normal(45, 3, 2), normal(40, 3, 3, 1.3)
    found = kernel_distance(x, y, subsets=subsets, subset_size=8)
    assert tuple(kernel_distance(shuffled(x), shuffled(y), subsets=subsets, subset_size=8)) == tuple(found)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("large", [1.0, 1e25])  # whose squares float32 does not hold
def test_products_of_float32_leave_kid_as_it_is(large: float, monkeypatch: pytest.MonkeyPatch):
    """About a centre far from zero too, where float32 of the features themselves keeps six digits of what varies."""
    monkeypatch.setattr(kernel, "LARGE", 80)
    x, y = normal(400, 24, 2, shift=30) * large, normal(400, 24, 3, 1.1, shift=30) * large
    values = []
    for word in range(3):
        mine, theirs = ranked(content_keys(x), word)[:80], ranked(content_keys(y), word)[-80:]
        values.append(kernel.polynomial_mmd(x[mine], y[theirs]))
    size = (x.square().mean() + 1).item() ** 3
    found = kernel_distance(x, y, subsets=3, subset_size=80)
    assert found == pytest.approx(sum(values) / 3, rel=0, abs=1e-11 * size)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_the_lowest_and_highest_ranks_are_the_ends_of_the_order(n: int):
    keys = content_keys(normal(41, 3, 4))
    assert torch.equal(lowest(keys, 5, n), ranked(keys, 5)[:n])
    assert torch.equal(highest(keys, 5, n), ranked(keys, 5)[-n:])


@pytest.mark.parametrize("subsets", [2, 30])
def test_features_of_float32_are_not_copied_and_give_the_same_kid(subsets: int):
    x, y = normal(4000, 8, 2).float(), normal(60, 8, 3, 1.3).float()
    wide = kernel_distance(x.double(), y.double(), subsets=subsets, subset_size=20)
    assert tuple(kernel_distance(x, y, subsets=subsets, subset_size=20)) == tuple(wide)
    kept = Reference("kept", None, len(x), fit(x), None, x)
    assert Context(Generated(60, fit(y), y), kept, None, None, 0, False, None).real is x


def influence(reference: Gaussian, x: Tensor, i: int, step: float = 1e-3) -> float:
    """How the distance changes with the weight of one image, by a difference of weights."""
    uniform = torch.full((len(x),), 1 / len(x), dtype=torch.float64)

    def distance(change: float) -> float:
        weights = uniform * (1 - change)
        weights[i] += change
        mean = weights @ x
        moved = (x - mean).T @ ((x - mean) * weights[:, None]) - torch.cov(x.T, correction=0)
        return frechet_terms(reference, Gaussian(mean, torch.cov(x.T) + moved)).value

    return (distance(step) - distance(-step)) / (2 * step)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("n_reference", "n"), [(200, 60), (200, 5), (5, 60)])
def test_the_error_is_that_of_what_each_image_adds(n_reference: int, n: int):
    real, fake = normal(n_reference, 6, 4), normal(n, 6, 5, 1.4, 0.3)
    real[:, 5], fake[:, 4] = 2.0, 1.0  # each set has a feature that does not vary
    reference = fit(real)
    exact = torch.tensor([influence(reference, fake, i) for i in range(n)]).std() / n**0.5
    assert delta_error(reference, fit(fake), fake) == pytest.approx(float(exact), rel=1e-4)


def test_the_error_of_one_feature_has_a_closed_form():
    x = normal(50, 1, 6, 1.5, 0.7)
    reference = Gaussian(torch.full((1,), 0.2, dtype=torch.float64), torch.full((1, 1), 0.81, dtype=torch.float64))
    gap, spread = float(x.mean()) - reference.mean.item(), float(x.std())
    centred = [value - float(x.mean()) for value in x[:, 0].tolist()]
    moved = torch.tensor([2 * gap * c + (1 - 0.9 / spread) * c**2 for c in centred], dtype=torch.float64)
    assert delta_error(reference, fit(x), x) == pytest.approx(float(moved.std()) / 50**0.5, rel=1e-12)


def test_the_error_is_the_bootstraps_within_its_own_error():
    """200 resamples know a spread to 5 %."""
    reference = fit(normal(5000, 4, 7))
    for x in (normal(1500, 4, 8, 1.3), normal(1500, 4, 9, 1.0, 0.3), normal(1500, 4, 10).exp() / 2):
        bootstrap = bootstrap_error(reference, x, resamples=200)
        assert delta_error(reference, fit(x), x) == pytest.approx(bootstrap, rel=0.15)


def test_where_bias_is_most_of_the_distance_the_error_is_not_too_small():
    """A generator as good as the reference, and as few images as three for a feature."""
    reference = fit(normal(20_000, 16, 11))
    sets = [normal(50, 16, 100 + seed) for seed in range(60)]
    spread = torch.tensor([frechet_terms(reference, fit(x)).value for x in sets]).std()
    errors = torch.tensor([delta_error(reference, fit(x), x) for x in sets])
    assert spread < errors.mean() < 2 * spread


def test_the_error_does_not_depend_on_coordinates_or_on_how_a_covariance_is_factored():
    real, fake = normal(30, 5, 12), normal(40, 5, 13, 1.3, 0.2)
    turn = torch.linalg.qr(normal(50, 50, 14)).Q[:5]
    turned = fit(real @ turn)
    assert turned.rows is not None
    plain = delta_error(fit(real), fit(fake), fake)
    assert delta_error(turned, fit(fake @ turn), fake @ turn) == pytest.approx(plain, rel=1e-9)
    dense = Gaussian(turned.mean, turned.covariance, turned.n)
    assert delta_error(dense, fit(fake @ turn), fake @ turn) == pytest.approx(plain, rel=1e-9)


def test_a_part_of_the_images_gives_the_error_of_all_whatever_their_order(monkeypatch: pytest.MonkeyPatch):
    reference, x = fit(normal(5000, 6, 15)), normal(4000, 6, 16, 1.3).float().double()
    fitted, whole = fit(x), delta_error(fit(normal(5000, 6, 15)), fit(x), x)
    monkeypatch.setattr(frechet_error, "LEAST", 1000)
    monkeypatch.setattr(frechet_error, "WORK", 1)
    part = delta_error(reference, fitted, x)
    assert part != whole
    assert part == pytest.approx(whole, rel=0.15)
    assert delta_error(reference, fitted, shuffled(x)) == pytest.approx(part, rel=1e-12)
    assert delta_error(reference, fitted, x.float()) == part
    assert delta_error(reference, fitted, x[:2000]) == pytest.approx(whole, rel=0.15)  # where no more are kept


def test_nothing_that_varies_has_no_error():
    constant = torch.ones(50, 4, dtype=torch.float64)
    assert delta_error(fit(constant), fit(constant + 2), constant + 2) == 0


MANY, D = 8000, 256


@pytest.mark.parametrize(
    "work",
    [
        lambda x: Moments(D).update(x).gaussian(),
        lambda x: delta_error(fit(x[:100]), fit(x[:200]), x),
        lambda x: kernel_distance(x, x[:1000], subsets=20, subset_size=400),  # pairs of all, and pairs of subsets
        lambda x: content_keys(x),
    ],
    ids=["moments", "error", "kid", "keys"],
)
def test_no_step_copies_all_features(work: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "TILE", 256)
    x = normal(MANY, D, 17)
    assert peak_bytes(lambda: work(x), torch.device("cpu")) < x.nbytes / 2


def test_images_that_several_processes_decode_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    for i in range(40):
        side = 8 + i % 3
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path / f"{i}.png")

    def seen() -> list[Tensor]:
        return [images for images, _ in image_subject(tmp_path, 30, Drawing())(None).batches]

    alone = seen()
    started = []
    start = workers._start
    monkeypatch.setattr(workers, "_start", lambda: started.append(1) or start())
    monkeypatch.setattr(workers, "PATIENCE", -1.0)
    monkeypatch.setattr(workers, "usual_workers", lambda: 2)
    monkeypatch.setattr(workers, "IMAGES", 4)
    shared = seen()
    assert started
    assert len(shared) == 30
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


@pytest.mark.parametrize(("before", "after"), [(32, 299), (37, 91), (64, 224), (70, 28), (9, 9)])
def test_pillows_resize_is_the_same_as_products_elsewhere(before: int, after: int):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, before, before + 5), generator=generator).float()
    pillow, products = (way(images, after, after + 2) for way in (resize._resize_clean, resize._resize_clean_there))
    assert (pillow - products).abs().max() <= 2**-15  # one unit in the last place of 255
    assert (pillow == products).double().mean() > 0.999


@pytest.mark.parametrize("mode", ["tf", "clean"])
def test_images_are_resized_where_they_are(mode: str):
    there = torch.empty(2, 3, 20, 30, device="meta")
    found = resize.resize(there, (10, 40), mode)
    assert (found.device.type, tuple(found.shape)) == ("meta", (2, 3, 10, 40))
