"""Fréchet distance: closed forms, exactness, invariances, statistics files."""

import io
import pickle  # noqa: TID251  (to show that one is refused)
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation import frechet_distance, frechet_from_stats, load_features
from diffdistill.evaluation.frechet import as_gaussian, fit, frechet_terms, nuclear_norm
from diffdistill.evaluation.moments import Moments
from diffdistill.evaluation.statistics import Statistics, check_same_features, load_statistics, save_statistics


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def whitened(n: int, d: int, seed: int) -> Tensor:
    """Features whose sample mean is 0 and whose unbiased sample covariance is the identity, exactly."""
    x = normal(n, d, seed)
    x = x - x.mean(0)
    return torch.linalg.qr(x).Q * (n - 1) ** 0.5


def test_distance_of_a_shift_is_its_squared_length():
    x = normal(500, 8, 0)
    shift = torch.arange(8, dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-12)


def test_distance_of_a_scaling_is_d_times_the_squared_difference_of_scales():
    x = whitened(400, 16, 1)
    assert frechet_distance(x, 3 * x) == pytest.approx(16 * (3 - 1) ** 2, rel=1e-12)


def test_commuting_covariances_have_a_closed_form():
    variances = torch.linspace(0.5, 4, 12, dtype=torch.float64)
    x, y = whitened(300, 12, 2), whitened(300, 12, 3) * variances.sqrt() + 0.5
    exact = 12 * 0.25 + float((variances.sqrt() - 1).square().sum())
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-12)


def test_two_by_two_covariances_that_do_not_commute():
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64)
    # For 2x2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), and M = A B has the eigenvalues of A^1/2 B A^1/2.
    product = a @ b
    root = float((product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt())
    zero = torch.zeros(2, dtype=torch.float64)
    assert frechet_from_stats(zero, a, zero, b) == pytest.approx(5 + 3 - 2 * root, rel=1e-12)


def test_equal_sets_have_distance_zero():
    x = normal(200, 20, 4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize(("n", "d"), [(1000, 64), (300, 150)])
def test_matches_the_matrix_square_root(n: int, d: int):
    x, y = normal(n, d, 5), normal(n, d, 6, 1.2, 0.1)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["falling", "rising", "two levels"])
@pytest.mark.parametrize("decades", [1, 4, 7])
def test_features_that_hardly_vary_cost_no_digits(kind: str, decades: int):
    deviations = torch.logspace(0, -decades, 60, dtype=torch.float64)
    if kind == "rising":
        deviations = deviations.flip(0)
    if kind == "two levels":
        deviations = torch.where(torch.arange(60) % 2 == 0, 1.0, 10.0**-decades).double()
    # A rotation of pairs of features keeps the small eigenvalues exact in float64, and the matrices far from diagonal.
    turn = torch.block_diag(*[torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)] * 30)
    a, b = (turn.T @ torch.diag(s.square()) @ turn for s in (deviations, 1.3 * deviations))
    zero = torch.zeros(60, dtype=torch.float64)
    exact = 0.3**2 * float(deviations.square().sum())
    assert frechet_from_stats(zero, a, zero, b) == pytest.approx(exact, rel=1e-11)


def test_the_fast_sum_of_singular_values_is_taken_only_where_it_is_right():
    regular, singular = whitened(50, 20, 25), whitened(50, 20, 26)
    singular[:, 10:] *= 1e-9
    for matrix in (regular, singular):
        log_det = float(torch.linalg.svdvals(matrix.T @ matrix).log().sum())
        exact = float(torch.linalg.svdvals(matrix.T @ matrix).sum())
        assert nuclear_norm(matrix.T @ matrix, log_det) == pytest.approx(exact, rel=1e-13)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("n", [2, 10, 30])
def test_fewer_images_than_features_is_exact(n: int):
    # In 5 coordinates the covariance is regular; a rotation into 40 coordinates must not change the distance.
    x, y = normal(60, 5, 7), normal(60, 5, 8, 1.5, 0.3)
    rotation = torch.linalg.qr(normal(40, 40, 9)).Q[:5]
    plain = frechet_distance(x[:n], y)
    assert frechet_distance(x[:n] @ rotation, y @ rotation) == pytest.approx(plain, rel=1e-9)
    assert frechet_distance(x[:n] @ rotation, y[:n] @ rotation) == pytest.approx(
        frechet_distance(x[:n], y[:n]), rel=1e-9
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_exact_small_n_path_agrees_with_the_covariances():
    x, y = normal(40, 64, 10), normal(50, 64, 11, 1.2)
    a, b = fit(x), fit(y)
    assert a.rows is not None
    dense = frechet_from_stats(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(x, y) == pytest.approx(dense, rel=1e-6)


def test_permutation_changes_nothing():
    x, y = normal(3000, 32, 12), normal(3000, 32, 13, 1.1)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x[order], y) == pytest.approx(frechet_distance(x, y), rel=1e-12)


@pytest.mark.parametrize("size", [1, 7, 333, 3000])
def test_batch_size_changes_nothing(size: int):
    x, y = normal(3000, 16, 14), normal(3000, 16, 15, 1.1)
    moments = Moments(16)
    for part in x.split(size):
        moments.update(part)
    assert frechet_terms(moments.gaussian(), fit(y)).value == pytest.approx(frechet_distance(x, y), rel=1e-11)


def test_moments_do_not_cancel_far_from_the_origin():
    x = normal(2000, 4, 16, shift=1e7)
    moments = Moments(4)
    for part in x.split(100):
        moments.update(part)
    assert torch.allclose(moments.gaussian().covariance, torch.cov((x - 1e7).T), rtol=1e-7)


def test_moments_keep_no_more_rows_than_features():
    moments = Moments(8)
    for part in normal(100, 8, 17).split(4):
        moments.update(part)
    assert moments.gaussian().rows is None
    assert not moments._rows


def test_float32_and_numpy_features_are_summed_in_float64():
    x, y = normal(500, 8, 18).float(), normal(500, 8, 19, 1.1).float()
    assert frechet_distance(x.numpy(), y) == frechet_distance(x.double(), y.double())


def test_few_images_warn():
    with pytest.warns(UserWarning, match="10 images for 16 features"):
        frechet_distance(normal(10, 16, 20), normal(100, 16, 21))


def test_constant_features_have_a_distance_and_a_warning():
    constant = torch.ones(50, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="all features are constant"):
        assert frechet_distance(constant, constant + 2) == pytest.approx(16)


def test_clipped_mass_is_reported():
    zero = torch.zeros(2, dtype=torch.float64)
    # Eigenvalues 1.1 and -0.1 with a non-negative diagonal: rounding of a foreign tool, much exaggerated.
    indefinite = torch.tensor([[0.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
    terms = frechet_terms(as_gaussian(zero, indefinite), as_gaussian(zero, torch.eye(2, dtype=torch.float64)))
    assert terms.clipped == pytest.approx(0.1 / 3, rel=1e-12)
    assert terms.value == pytest.approx(1 + 2 - 2 * 1.1**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (normal(1, 4, 0), normal(9, 4, 1), "hold 1 images"),
        (normal(9, 4, 0), normal(9, 5, 1), "4 and 5 features"),
        (normal(9, 4, 0) * float("nan"), normal(9, 4, 1), "NaN or infinite for 9 of 9"),
        (torch.zeros(9), normal(9, 4, 1), r"shape \(9,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unfit_features_are_refused(x: Tensor, y: Tensor, words: str):
    with pytest.raises(DataError, match=words):
        frechet_distance(x, y)


def test_statistics_survive_a_file(tmp_path: Path):
    extractor = load_features("pixels")
    gaussian = fit(normal(2000, extractor.dim, 22))
    save_statistics(tmp_path / "s.npz", Statistics(gaussian, extractor.id, extractor.sha256, "clean"))
    read = load_statistics(tmp_path / "s.npz")
    assert torch.equal(read.gaussian.mean, gaussian.mean)
    assert torch.equal(read.gaussian.covariance, gaussian.covariance)
    assert (read.gaussian.n, read.extractor_id, read.resize) == (2000, extractor.id, "clean")
    check_same_features(read, extractor)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("name", [b"n.npy", b"extractor_id.npy", b"sha256.npy"])
def test_a_name_that_is_damaged_is_no_array_less(tmp_path: Path, name: bytes):
    save_statistics(tmp_path / "s.npz", Statistics(fit(normal(100, 6, 23)), "an extractor", "0" * 64, "clean"))
    data = (tmp_path / "s.npz").read_bytes()
    at = data.rindex(b"\0" + name) + 1  # in the directory at the end; the name beside the array stays
    (tmp_path / "s.npz").write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    with pytest.raises(DataError):
        load_statistics(tmp_path / "s.npz")


def test_other_tools_read_our_statistics_and_we_read_theirs(tmp_path: Path):
    gaussian = fit(normal(100, 6, 23))
    save_statistics(tmp_path / "ours.npz", Statistics(gaussian))
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:  # noqa: TID251
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
    np.savez(tmp_path / "edm.npz", mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy())
    read = load_statistics(tmp_path / "edm.npz")
    assert read.gaussian.n is None
    assert frechet_terms(read.gaussian, gaussian).value == pytest.approx(0, abs=1e-12)


def test_statistics_of_another_extractor_are_refused(tmp_path: Path):
    extractor = load_features("pixels")
    gaussian = as_gaussian(np.zeros(extractor.dim), np.eye(extractor.dim))
    with pytest.raises(DataError, match="was made by 'other'"):
        check_same_features(Statistics(gaussian, "other", "0" * 64, source="x.npz"), extractor)
    with pytest.raises(DataError, match="has 3 features"):
        check_same_features(Statistics(as_gaussian(np.zeros(3), np.eye(3)), source="x.npz"), extractor)


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path):
    marker = tmp_path / "run"
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Bomb(marker)))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("mu.npy", buffer.getvalue())
        archive.writestr("sigma.npy", buffer.getvalue())
    (tmp_path / "c.npz").write_bytes(b"")
    for name in ("a.npz", "b.npz", "c.npz", "absent.npz"):
        with pytest.raises(DataError, match="is no statistics file"):
            load_statistics(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("mu", "sigma", "words"),
    [
        (np.zeros(3), np.eye(2), "shapes"),
        (np.full(2, np.nan), np.eye(2), "NaN"),
        (np.zeros(2), np.array([[1.0, 5.0], [0.0, 1.0]]), "not symmetric"),
        (np.zeros(2), -np.eye(2), "non-negative diagonal"),
        (np.array(["a", "b"]), np.eye(2), "not numbers"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path: Path, mu: np.ndarray, sigma: np.ndarray, words: str):
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    with pytest.raises(DataError, match=words):
        load_statistics(tmp_path / "s.npz")


def test_npz_without_statistics_says_what_it_holds(tmp_path: Path):
    np.savez(tmp_path / "s.npz", images=np.zeros((2, 3)))
    with pytest.raises(DataError, match="holds images: statistics need 'mu' and 'sigma'"):
        load_statistics(tmp_path / "s.npz")
