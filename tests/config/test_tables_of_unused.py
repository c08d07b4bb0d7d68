"""What the tables of unused settings say is what the code reads: each setting is changed, and the result looked at."""

from dataclasses import fields, replace

import pytest
import torch

from diffdistill.config.networks import Network
from diffdistill.config.unused import LAWS, TRAIN, UNET
from diffdistill.divergences import divergence_names, get_divergence
from diffdistill.optimizers import Optimizer
from diffdistill.process import VP, Level, LevelLaw
from diffdistill.training.optim.updater import Updater
from diffdistill.training.tasks.teacher import build_network

OTHER = {
    "mean": 0.5, "std": 0.7, "sigma_min": 0.1, "sigma_max": 5.0, "rho": 3.0, "u_min": 0.2, "u_max": 0.8, "shift": 2.0,
}  # fmt: skip
STEPS = VP(torch.linspace(0.99, 0.01, 50), "epsilon")


def levels(level: Level) -> torch.Tensor:
    return LevelLaw(level, process=STEPS).sigma(torch.linspace(0.05, 0.95, 7))


def test_every_setting_of_a_law_is_tried():
    assert {*OTHER, "law"} == {field.name for field in fields(Level)}
    assert {key for keys in LAWS.values() for key in keys} == OTHER.keys()


@pytest.mark.parametrize("law", LAWS)
def test_what_a_law_of_the_level_reads(law):
    level = Level(law)
    changed = [key for key, value in OTHER.items() if not levels(replace(level, **{key: value})).equal(levels(level))]
    assert sorted(changed) == sorted(LAWS[law])


def idle(key: str, settings: object) -> bool:
    """Whether a rule of `train` calls a key unused; settings: what stands in the place of all of them."""
    return any(rule.idle(settings) for rule in TRAIN if key in rule.keys)


class At:
    """Settings of which one section is there."""

    def __init__(self, **sections: object):
        self.__dict__.update(sections)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_schedule_that_reads_where_it_decays_from(schedule):
    rates = []
    for start in (0.0, 0.5):
        optimizer = Optimizer(learning_rate=1e-3, schedule=schedule, decay_from=start)
        updater = Updater("x", [torch.nn.Parameter(torch.ones(2))], optimizer, 10)
        rates.append([updater.rate(step) for step in range(10)])
    assert idle("optimizer.decay_from", At(optimizer=optimizer)) == (rates[0] == rates[1])


NETWORK = {"block_out_channels": (8, 16), "attention_levels": (), "attention_head_dim": 4, "norm_num_groups": 4}
UVIT = {"hidden_size": 16, "depth": 2, "num_attention_heads": 2}
OTHERS = {
    "block_out_channels": (8, 24), "layers_per_block": 2, "attention_levels": (0,), "attention_head_dim": 8,
    "norm_num_groups": 8,
}  # fmt: skip


def described(settings: Network) -> str:
    network = build_network(settings, torch.Size((1, 8, 8)), None)
    return str({k: v for k, v in network.config.items() if not k.startswith("_")})


@pytest.mark.parametrize("kind", ["unet", "uvit"])
def test_what_a_kind_of_network_reads(kind):
    assert set(UNET) == OTHERS.keys() == Network.model_fields.keys() - {"kind", "uvit", "scalelong"}
    settings = Network(kind=kind, uvit=UVIT, **NETWORK)
    for key, value in OTHERS.items():
        other = Network.model_validate(settings.model_dump() | {key: value})
        assert (described(other) == described(settings)) == idle(f"network.{key}", At(network=settings)), key
    other = Network.model_validate(settings.model_dump() | {"uvit": UVIT | {"hidden_size": 32}})
    assert (described(other) == described(settings)) == idle("network.uvit", At(network=settings))


@pytest.mark.parametrize("mode", ["cs", "ls", "rsqrt2"])
def test_what_a_mode_of_scalelong_reads(mode):
    def output(**more: object) -> torch.Tensor:
        torch.manual_seed(0)
        settings = Network(**NETWORK, scalelong={"mode": mode, **more})
        network = build_network(settings, torch.Size((1, 8, 8)), None)
        with torch.no_grad():
            return network(torch.ones(1, 1, 8, 8), torch.tensor([3.0])).sample

    settings = At(network=Network(**NETWORK, scalelong={"mode": mode}))
    for key, value in (("kappa", 0.4), ("start", "reference")):
        same = torch.equal(output(), output(**{key: value}))
        assert same == idle(f"network.scalelong.{key}", settings), key


def test_a_divergence_that_reads_a_ratio():
    logits = torch.linspace(-2, 2, 5)
    for name in (*divergence_names(), "alpha:0", "alpha:0.3", "alpha:1"):
        weights = get_divergence(name).weight(logits)
        assert get_divergence(name).needs_ratio == (not torch.allclose(weights, weights[:1].expand(5))), name
