"""The affine map of Epsilon Scaling against its definition: x0 and eps of one and the same state."""

import math

import pytest
import torch
from gaussian import output_for

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.epsilon_scaling import scale_denoised
from diffdistill.schedulers import EpsilonScaleSchedule, scale_model_output

LAM = 1.01


def state(
    alpha: float, s: float, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0, eps and x = alpha x0 + s eps, `(5, 3, 4, 4)`."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 3, 4, 4, generator=generator, dtype=dtype) for _ in range(2))
    return x0, eps, alpha * x0 + s * eps


def predictions(x0: torch.Tensor, eps: torch.Tensor, alpha: float, s: float) -> dict[str, torch.Tensor]:
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": (alpha * eps - s * x0) / math.hypot(alpha, s),
        "flow": eps - x0,
    }


@pytest.mark.parametrize(("alpha", "s"), [(0.8, 0.6), (0.05, 0.9), (1.0, 7.0), (0.3, 0.7)])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_the_scaled_output_means_eps_over_lambda(kind: str, alpha: float, s: float) -> None:
    x0, eps, x = state(alpha, s)
    scaled_eps = eps / LAM
    scaled_x0 = (x - s * scaled_eps) / alpha
    scaled = scale_model_output(predictions(x0, eps, alpha, s)[kind], x, LAM, alpha, s, kind, flow_mode="exact")
    torch.testing.assert_close(scaled, predictions(scaled_x0, scaled_eps, alpha, s)[kind], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "sign"), [("epsilon", 1), ("v_prediction", -1)])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 80.0])
def test_a_raw_edm_network_moves_its_denoiser_towards_x(kind: str, sign: int, sigma: float) -> None:
    sigma_data = 0.5
    total = sigma**2 + sigma_data**2
    skip, out = sigma_data**2 / total, sign * sigma * sigma_data / math.sqrt(total)
    _, raw, x = state(1.0, sigma)
    denoised = skip * x + out * raw
    scaled = scale_model_output(raw, x, LAM, 1.0, sigma, kind, sigma_data=sigma_data)
    expected = x - (x - denoised) / LAM
    torch.testing.assert_close(skip * x + out * scaled, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scale_denoised(denoised, x, LAM), expected, rtol=1e-12, atol=1e-12)


def test_residual_flow_scales_what_is_left_of_x() -> None:
    x0, eps, x = state(0.01, 0.99)
    velocity = eps - x0
    scaled = scale_model_output(velocity, x, LAM, 0.01, 0.99, "flow")
    denoised, before = x - 0.99 * scaled, x - 0.99 * velocity
    torch.testing.assert_close(x - denoised, (x - before) / LAM, rtol=1e-12, atol=1e-12)
    # Near pure noise the exact map throws x0 far off, the residual one does not.
    exact = x - 0.99 * scale_model_output(velocity, x, LAM, 0.01, 0.99, "flow", flow_mode="exact")
    assert (exact - before).abs().mean() > 0.5 > 0.02 > (denoised - before).abs().mean()


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_lambda_one_is_the_same_object(kind: str) -> None:
    _, eps, x = state(0.8, 0.6)
    assert scale_model_output(eps, x, 1.0, 0.8, 0.6, kind, flow_mode="exact") is eps
    assert scale_denoised(eps, x, 1.0) is eps


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize(("alpha", "s"), [(0.0, 1.0), (9e-4, 1.0), (1.0, 4096.0)])
def test_a_state_without_signal_is_left_alone(kind: str, alpha: float, s: float) -> None:
    _, eps, x = state(alpha, s)
    assert scale_model_output(eps, x, LAM, alpha, s, kind, flow_mode="exact") is eps


def test_learned_variances_pass_untouched() -> None:
    x0, eps, x = state(0.8, 0.6)
    both = torch.cat([eps, x0], dim=1)
    scaled = scale_model_output(both, x, LAM, 0.8, 0.6, "epsilon")
    assert torch.equal(scaled[:, :3], eps / LAM)
    assert torch.equal(scaled[:, 3:], x0)


def test_half_precision_is_scaled_in_float32() -> None:
    _, eps, x = state(0.8, 0.6, torch.bfloat16)
    scaled = scale_model_output(eps, x, 1.001, 0.8, 0.6, "epsilon")
    assert scaled.dtype == torch.float32
    assert torch.equal(eps / 1.001, eps), "in bf16 a division by 1.001 is no change, which is why"
    assert (scaled != eps.float()).float().mean() > 0.99
    assert scale_model_output(eps.double(), x.double(), 1.001, 0.8, 0.6, "epsilon").dtype == torch.float64


def test_bad_values_are_sentences() -> None:
    _, eps, x = state(0.8, 0.6)
    for lam in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="lambda must be above 0"):
            scale_model_output(eps, x, lam, 0.8, 0.6, "epsilon")
    with pytest.raises(ConfigError, match="prediction type 'score' cannot be scaled; use epsilon, sample"):
        scale_model_output(eps, x, LAM, 0.8, 0.6, "score")
    with pytest.raises(ConfigError, match="flow_mode 'both' is unknown"):
        scale_model_output(eps, x, LAM, 0.8, 0.6, "flow", flow_mode="both")  # type: ignore[arg-type]


# ---- the schedule


def value(schedule: EpsilonScaleSchedule, index: int, steps: int = 20, alpha: float = 0.8, s: float = 0.6) -> float:
    return schedule(index=index, num_steps=steps, alpha=alpha, s=s)


def test_the_line_has_its_mean_where_the_reference_puts_it() -> None:
    """The authors' code is given the mean: LSUN at 20 steps 1.011 with k = 0.0008 makes the published b = 1.0034."""
    line = EpsilonScaleSchedule(b=1.0034, k=0.0008)
    values = [value(line, index) for index in range(20)]
    assert values[-1] == 1.0034, "i = 0 is the last step, at the clean end"
    assert values[0] == pytest.approx(1.0034 + 19 * 0.0008), "largest at pure noise"
    assert sum(values) / 20 == pytest.approx(1.011)


def test_knots_are_a_function_of_the_noise_level_alone() -> None:
    knots = EpsilonScaleSchedule(knots=((-2.0, 1.02), (0.0, 1.0), (4.0, 1.01)))
    for log_snr, expected in ((-9.0, 1.02), (-2.0, 1.02), (-1.0, 1.01), (0.0, 1.0), (1.0, 1.0025), (9.0, 1.01)):
        ratio = math.exp(log_snr / 2)
        for index in (0, 7):
            assert value(knots, index, alpha=ratio, s=1.0) == pytest.approx(expected, abs=1e-12)
    assert value(knots, 0, alpha=0.0, s=1.0) == 1.02
    assert value(knots, 0, alpha=1.0, s=0.0) == 1.01


def test_kinds_and_identity() -> None:
    assert [EpsilonScaleSchedule(1.01).kind, EpsilonScaleSchedule(1.0, 1e-3).kind] == ["constant", "linear"]
    assert EpsilonScaleSchedule(knots=((0.0, 1.0), (1.0, 1.0))).is_identity
    assert EpsilonScaleSchedule().is_identity
    assert not EpsilonScaleSchedule(1.0, 1e-3).is_identity


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"b": 0.0}, "b gives 0; lambda must be above 0"),
        ({"b": math.nan}, "b = nan is not a finite number"),
        ({"k": math.inf}, "k = inf is not a finite number"),
        ({"b": 1.1, "knots": ((0.0, 1.0),)}, "knots, or b and k, not both"),
        ({"knots": ((1.0, 1.0), (0.0, 1.0))}, "log_snr values that increase"),
        ({"knots": ()}, "log_snr values that increase"),
        ({"knots": ((0.0, -1.0),)}, "the knot at log_snr 0 gives -1"),
        ({"knots": ((0.0, math.inf),)}, "is inf; give a finite lambda"),
        ({"knots": (1.0, 2.0)}, "are not .log_snr, lambda. pairs"),
    ],
)
def test_schedules_that_are_not_allowed(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        EpsilonScaleSchedule(**settings)


def test_a_line_that_reaches_zero() -> None:
    with pytest.raises(ConfigError, match=r"step 0 of 20 gives -0\.9; lambda must be above 0"):
        value(EpsilonScaleSchedule(1.0, -0.1), 0)


def test_the_test_network_speaks_every_language() -> None:
    """`output_for` of the other test files against the definitions above."""
    from diffusers import DDIMScheduler

    alpha, s = 0.8, 0.6
    x0, eps, x = state(alpha, s)
    for kind in ("epsilon", "sample", "v_prediction"):
        found = output_for(DDIMScheduler(prediction_type=kind), x0, x, alpha, s)
        torch.testing.assert_close(found, predictions(x0, eps, alpha, s)[kind])
