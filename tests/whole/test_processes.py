"""Several processes as one: what they hand each other, and two updates of a run; the rest is in tests/processes."""

import pytest
import torch
from ranks import pair
from runs import settings, task
from same_run import distances, trained

from diffdistill import processes
from diffdistill.config.places import placed
from diffdistill.errors import ConfigError, DiskError
from diffdistill.training.signals import Stopped, led, stop_requests

COUNT = 5  # rows: 2 and 3 of them
ROWS = torch.arange(10.0).reshape(COUNT, 2)


def numbers(rank):
    """Everything that goes between processes, as tensors."""
    with processes.together():
        mine = processes.rows(COUNT)
        network = torch.nn.Linear(2, 1).requires_grad_()
        network.weight.data.fill_(1.0)
        network.bias.data.zero_()
        (network(ROWS[mine]).square().sum() / COUNT).backward()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "BUCKET", 1)  # a call for each
            processes.sum_gradients([network.weight, network.bias, torch.nn.Parameter(torch.ones(1))])
        turns = [found["x"] for found in processes.in_turn(lambda x: {"x": x + rank}, ROWS.split(1))]
        with processes.alone():
            own = processes.total(torch.ones(1))
        figures = processes.mean({"a": ROWS[mine].mean(), "b": float(rank)}, mine.stop - mine.start, COUNT)
        return {
            "rows": torch.tensor([mine.start, mine.stop]),
            "gathered": processes.gather(ROWS[mine], COUNT),
            "total": processes.total(torch.tensor([1.0 + rank])),
            "most": torch.tensor(processes.most(3 - rank)),
            "said": torch.tensor(processes.share([rank + 0.1])[0], dtype=torch.float64),
            "led": torch.tensor(processes.lead(lambda: rank + 7)),
            "gradient": network.weight.grad,
            "slope": network.bias.grad,
            "mean": torch.stack([figures["a"], figures["b"]]),
            "turns": torch.cat(turns),
            "own": own,
        } | {"errors": torch.tensor([together_refused(rank), led_refused(rank), stopped(rank)])}


def together_refused(rank):
    processes.agree({"settings": 1, "data": "x"})
    with pytest.raises(ConfigError, match="process 1 has other data than process 0") as raised:
        processes.agree({"settings": 1, "data": rank})
    return raised.value.told


def led_refused(rank):
    def fails():
        raise DiskError("no room")

    with pytest.raises(DiskError, match="no room") as raised:
        processes.lead(fails)
    return raised.value.told


def stopped(rank):
    """A stop of the leader is one of all."""

    def stops():
        stop.requested = True
        stop.obey()

    with stop_requests() as stop:
        with stop.held(), pytest.raises(Stopped):
            led(stops)
        return stop.word


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes return of `numbers` and of four updates with a discriminator, in parts."""
    folder = tmp_path_factory.mktemp("both")
    config = settings("f_distill", folder, max_train_steps=4, train_batch_size=3, micro_batch_size=1)

    def work(rank):
        run = {f"run {name}": value for name, value in trained(lambda: task(config), 4).items()}
        return numbers(rank) | run

    one = {name: value.clone() for name, value in trained(lambda: task(config), 4).items()}
    return one, pair(work, folder / "ranks")


def test_two_processes_take_the_steps_of_one(both):
    one, several = both
    runs = [{n.removeprefix("run "): v for n, v in found.items() if n.startswith("run ")} for found in several]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    worst = distances(one, runs[0])
    assert worst["gradient"] <= 1e-5
    assert worst["weights"] <= 1e-5
    assert worst["moved"] <= 3e-4
    assert worst["figures"] <= 1e-5


def test_what_processes_hand_each_other(both):
    for rank, found in enumerate(both[1]):
        assert found["rows"].tolist() == [[0, 2], [2, 5]][rank]
        assert torch.equal(found["gathered"], ROWS)
        assert found["total"].item() == 3.0
        assert found["most"].item() == 3
        assert found["said"].item() == 0.1
        assert found["led"].item() == 7
        assert found["own"].item() == 1.0
        assert found["mean"].tolist() == pytest.approx([4.5, 0.6])
        expected = [row + [0, 1, 0, 1, 0][i] for i, row in enumerate(ROWS)]
        assert torch.equal(found["turns"], torch.stack(expected))
        assert found["errors"].tolist() == [rank, rank, 1]  # the leader tells them; to be preempted is word 1
        assert torch.allclose(found["gradient"][0], (2 / COUNT * ROWS.sum(1, keepdim=True) * ROWS).sum(0))
        assert torch.allclose(found["slope"][0], 2 / COUNT * ROWS.sum())


def test_one_process_hands_back_what_it_was_given():
    given = torch.ones(3, requires_grad=True)
    assert processes.gather(given, 3) is given
    assert processes.total(given) is given
    assert processes.rows(5) == slice(0, 5)
    figures = {"a": 1.0}
    assert processes.mean(figures, 3, 3) is figures
    assert processes.most(4) == 4
    assert processes.lead(lambda: given) is given
    assert list(processes.in_turn(lambda x: {"x": x}, [1])) == [{"x": 1}]
    processes.agree({"anything": given})


@pytest.mark.parametrize(
    ("words", "rank"), [({}, 0), ({"RANK": "1", "WORLD_SIZE": "2"}, 1), ({"RANK": "x", "WORLD_SIZE": "2"}, 0)]
)
def test_what_a_launcher_says(monkeypatch, words, rank):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    assert processes.launched()[0] == rank


@pytest.mark.parametrize("told", [False, True])
def test_the_place_of_a_setting_does_not_make_others_tell_an_error(told):
    error = ConfigError("'runs/x' is no folder for a run; name another")
    error.told = told  # by the leader
    config = settings("train", "runs/x")
    located = placed(error, config, {"output_dir": "override 'output_dir=runs/x'"})
    assert str(located) == f"override 'output_dir=runs/x': {error}"
    assert located.told is told


def test_half_of_a_launch_is_a_sentence(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(ConfigError, match=r"process 0 of 2 does not find the others .*MASTER_ADDR"),
        processes.together(),
    ):
        pass
