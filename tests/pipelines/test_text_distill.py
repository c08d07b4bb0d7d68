"""Distilling a text-to-image pipeline: who learns, who must not, and what is saved."""

import pytest
import torch

pytest.importorskip("transformers")

from runs import go, lines, without
from text_drawing import ours, stock
from text_world import LORA, MAKERS, settings, task, world

from diffdistill.training.store import CheckpointStore, tensors_of

TAPS = {"sd3": "transformer_blocks.0", "flux": "single_transformer_blocks.0", "pixart": "transformer_blocks.1"}
METHODS = [
    "diff_instruct",
    "diff_instruct_pp",
    "diff_instruct_star",
    "dmd2",
    "f_distill",
    "sid",
    "sim",
    "uni_instruct",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("text"))


def everything(made):
    """All tensors of the run: of the pipeline's parts, and of what is trained."""
    adapter = made.student.adapter
    parts = {name: part for name, part in adapter.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": value.clone()
        for name, part in (parts | made.parts).items()
        for key, value in tensors_of(part).items()
    }


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("more", [{}, LORA], ids=["full", "lora"])
def test_only_student_and_critic_learn(folder, kind, more):
    made = task(settings(folder, kind, **more))
    before = everything(made)
    for step in range(2):  # in the first, B is 0, so A has no gradient
        made.update(step)
    after = everything(made)
    changed = {
        name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before.get(name, value))
    }
    assert changed == {"student", "critic", "student_ema"}
    frozen = [
        made.method.teacher,
        *(p for p in made.student.adapter.pipeline.components.values() if hasattr(p, "train")),
    ]
    for part in frozen:
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())


def test_the_networks_of_a_lora_run_are_one_copy_and_start_as_the_teacher(folder):
    made = task(settings(folder, **LORA))
    student, critic, teacher = made.student, made.denoisers["critic"], made.method.teacher
    assert student.layers is critic.layers is teacher.network
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in made.denoisers.items()}
    assert sizes["student"] == sizes["average"] < 0.1 * sizes["teacher"]
    x, sigma, cond = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 3.0]), student.prompts.ids(["a", "b"])
    with torch.no_grad():
        assert torch.equal(student(x, sigma, cond), teacher(x, sigma, cond))
        for parameter in student.parameters():
            parameter.add_(0.1)
        assert not torch.allclose(student(x, sigma, cond), teacher(x, sigma, cond))
        assert torch.equal(critic(x, sigma, cond), teacher(x, sigma, cond))


def test_a_checkpoint_of_adapters_holds_adapters_only(folder, tmp_path):
    made = task(settings(folder, **LORA))
    go(made, made.config.model_copy(update={"output_dir": str(tmp_path)}), tmp_path)
    newest, _ = CheckpointStore(tmp_path / "checkpoints", 10).find("latest")
    names = {name for name, part in made.parts.items() if name in ("student", "critic") for name in tensors_of(part)}
    assert names
    assert all(".low_rank." in name for name in names)
    assert sum(f.stat().st_size for f in newest.iterdir()) < 4 * sum(
        p.nbytes for p in made.method.teacher.parameters()
    )


@pytest.mark.parametrize("more", [{}, LORA], ids=["full", "lora"])
def test_a_run_resumed_at_any_step_is_bit_equal_to_one_never_stopped(folder, tmp_path, more):
    def run(where, **extra):
        where.mkdir(exist_ok=True)
        made = task(settings(folder, method="sid", images=True, output_dir=str(where), **more, **extra))
        go(made, made.config, where)
        return {f"{n}.{k}": v.clone() for n, part in made.parts.items() for k, v in tensors_of(part).items()}

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts")
    for step in (2,):
        without(tmp_path / "parts", step)
        resumed = run(tmp_path / "parts", resume_from_checkpoint="latest")
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), step
        assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@pytest.mark.parametrize("method", ["diff_instruct", "sid"])
def test_checkpointed_activations_change_nothing_though_three_roles_share_the_weights(folder, method):
    found = []
    for checkpointing in (False, True):
        made = task(settings(folder, method=method, gradient_checkpointing=checkpointing, **LORA))
        for step in range(3):
            torch.manual_seed(step)
            made.update(step)
        found.append({name: value.clone() for name, value in made.student.state_dict().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("consent")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_distils(folder, method):
    options = (
        {"reward": {"name": f"{folder / 'bright.py'}:bright", "weight": 1.0}}
        if "pp" in method or "star" in method
        else {}
    )
    made = task(settings(folder, method=method, images=True, options=options, max_train_steps=2, **LORA))
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    for step in range(2):
        torch.manual_seed(step)
        metrics = made.update(step)
        assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
    assert any(not torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    assert ("discriminator/loss" in metrics) == (made.method.adversarial is not None)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_distilled_student_draws_the_same_in_stock_diffusers(folder, tmp_path, kind):
    fast = {"optimizer": {"learning_rate": 0.02}, "ema_decay": 0.0}
    made = task(settings(folder, kind, student={"steps": 2, "lora": {"rank": 2}, **fast}))
    for step in range(2):
        made.update(step)
    average = made.averaged()
    average.save_pretrained(tmp_path / "student", role="student", levels=made.levels)
    latents, seed = ours(average, "a red thing")
    moved = (
        latents
        - ours(made.method.teacher.with_network(made.method.teacher.network, average.metadata), "a red thing")[0]
    )
    assert moved.abs().max() > 1e-3 * latents.abs().max()
    theirs = stock(tmp_path / "student", "a red thing", seed)
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4 * float(latents.abs().max()))


def test_heads_on_the_critic_train_its_adapter_and_not_the_shared_weights(folder):
    made = task(settings(folder, "sd", "dmd2", images=True, options={"adversarial": {"features": "critic"}}, **LORA))
    made.student_updater.step = lambda step: {}
    made.critic_updaters[0].step = lambda step: {}  # its gradients stay, to be looked at
    before = everything(made)
    made.update(0)
    critic = made.denoisers["critic"]
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in made.method.teacher.parameters())
    after = everything(made)
    assert {n.partition(".")[0] for n, v in after.items() if not torch.equal(v, before.get(n, v))} <= {
        "discriminator", "student_ema",
    }  # fmt: skip


@pytest.mark.parametrize("kind", TAPS)
def test_a_discriminator_reads_the_tokens_of_a_transformer_as_a_map(folder, kind):
    """The maps are those of the image: a change of one corner's latents shows most in that corner."""
    options = {"adversarial": {"taps": (TAPS[kind],)}}
    made = task(settings(folder, kind, "dmd2", images=True, options=options))
    assert "discriminator/accuracy" in made.update(0)
    teacher = made.method.teacher
    x, sigma = torch.randn(1, 4, 8, 8), torch.ones(1)
    other = x.clone()
    other[..., 6:, :2] += 1.0
    with torch.no_grad():
        maps = [teacher.features(y, sigma, teacher.prompts.ids(["a"]), (TAPS[kind],))[0] for y in (x, other)]
    assert maps[0].shape[2:] == (4, 4)
    change = (maps[0] - maps[1]).abs().sum(1)[0]
    assert int(change.argmax()) == 3 * 4


def test_a_step_in_parts_adds_up_the_gradients_of_its_images(folder, monkeypatch):
    """With one level and one noise for all, a batch cut into parts is the batch whole."""
    from diffdistill.process import LevelLaw

    monkeypatch.setattr(LevelLaw, "draw", lambda self, n, device="cpu": (torch.full((n,), 0.5), torch.full((n,), 0.7)))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.ones_like(x) * torch.linspace(-1, 1, x.shape[-1]))
    found = []
    for size in (None, 1, 3):
        made = task(settings(folder, "sd3", train_batch_size=4, micro_batch_size=size, max_train_steps=1))
        seen = {}
        for updater in (made.student_updater, *made.critic_updaters):

            def step(_step, updater=updater, seen=seen):
                seen[updater.name] = [p.grad.clone() for p in updater.parameters]
                return {}

            monkeypatch.setattr(updater, "step", step)
        torch.manual_seed(3)
        made.update(0)
        found.append(seen)
    for other in found[1:]:
        for name, gradients in found[0].items():
            for mine, theirs in zip(other[name], gradients, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-9)


@pytest.mark.usefixtures("consent")
def test_a_reward_sees_decoded_pixels_and_the_texts(folder):
    reward = {"name": f"{folder / 'bright.py'}:bright", "weight": 1.0}
    made = task(settings(folder, method="diff_instruct_pp", options={"reward": reward}))
    made.update(0)
    images, prompts = made.method.reward.reward.function.__globals__["seen"][-1]
    assert images.shape[1:] == (3, 16, 16)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert all(prompt.startswith("thing ") for prompt in prompts)


@pytest.mark.parametrize(("kind", "steps"), [("sd", 1), ("sd", 4), ("sd3", 4)])
def test_a_student_starts_by_regression_on_the_guided_teacher(folder, kind, steps):
    student = {"steps": steps, "regression": {"steps": 2, "pairs": 4, "solver_steps": 4}, "lora": {"rank": 2}}
    made = task(settings(folder, kind, student=student))
    assert "regression/loss" in made.update(0)
    assert "regression/loss" in made.update(1)
    assert "critic/loss" in made.update(2)


def test_each_adapter_has_the_alpha_of_its_role(folder):
    """The adapters' product is scaled by alpha / rank (2106.09685), by 1 where no alpha is given."""
    made = task(settings(folder, student={"lora": {"rank": 2, "alpha": 6.0}}, critic={"lora": {"rank": 4}}))
    adapter = made.student.network.low_rank
    name = adapter.layers[0]
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    key = name.replace(".", "/")
    product = (adapter.up[key].flatten(1) @ adapter.down[key].flatten(1)).reshape(adapter.change(name).shape)
    torch.testing.assert_close(adapter.change(name), 3.0 * product)
    critic = made.method.critic.network.low_rank
    torch.nn.init.normal_(critic.up[key])
    product = (critic.up[key].flatten(1) @ critic.down[key].flatten(1)).reshape(critic.change(name).shape)
    torch.testing.assert_close(critic.change(name), product)
