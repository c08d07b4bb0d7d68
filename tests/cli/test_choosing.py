"""The search over adapters: what is run and where, what is refused, and a study that goes on after a kill."""

import json
from pathlib import Path

import pytest

from diffdistill.cli.choosing import Search, front, search_adapters, study_of
from diffdistill.errors import ConfigError, DiskError
from diffdistill.training.lock import AT_WORK

WORDS = (
    "student.lora.rank=4", "critic.lora.rank=4", "student.regression.muon=null", "evaluation.metrics=[fid,neighbours]",
)  # fmt: skip


def search(out=Path("out"), candidates=("to_q", "to_k", "to_v"), figures=("fid", "neighbours"), words=WORDS):
    return Search("emoji/one_step", words, candidates, figures, out)


def test_a_choice_is_a_run_of_its_own_folder_that_is_resumed(tmp_path):
    one = search(tmp_path)
    assert one.command(("to_q", "to_v"))[1:] == [
        "-m", "diffdistill", "distill", "emoji/one_step", *WORDS, 'student.lora.targets=["to_q", "to_v"]',
        f"output_dir={tmp_path}/to_q+to_v", "resume_from_checkpoint=latest",
    ]  # fmt: skip
    assert one.scores(("to_q",)) is None
    metrics = {"fid": {"value": 9.0}, "neighbours": {"value": 0.4}}
    (tmp_path / "to_q").mkdir()
    result = {"student": {"metrics": metrics, "protocol": {}}, "teacher": {"metrics": {"fid": {"value": 1.0}}}}
    (tmp_path / "to_q" / "evaluation.json").write_text(json.dumps(result))
    assert one.scores(("to_q",)) == [9.0, 0.4]
    assert one.directions() == ["minimize", "maximize"]
    del metrics["neighbours"]  # could not be measured: of this run nothing is known
    (tmp_path / "to_q" / "evaluation.json").write_text(json.dumps(result))
    assert one.scores(("to_q",)) is None
    for damaged in ("", "[]", '{"student": {"metrics": {"fid": {"value": NaN}, "neighbours": {"value": 0.4}}}}'):
        (tmp_path / "to_q" / "evaluation.json").write_text(damaged)
        assert one.scores(("to_q",)) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"candidates": ("to_q",)}, "name two kinds of layers or more"),
        ({"candidates": ("to_q", "to_q")}, "each once"),
        ({"candidates": ("to_q", "a/b")}, "the end of a layer's name"),
        ({"figures": ("fid", "kid")}, "'kid' is not measured, only fid, neighbours"),
        ({"words": ("student.lora.rank=0",)}, "rank"),
    ],
)
def test_what_could_come_to_nothing_is_refused_before_the_first_run(changed, said):
    search().check()
    with pytest.raises(ConfigError, match=said):
        search(**changed).check()


def test_a_full_disk_or_a_run_still_at_work_ends_the_search_and_no_trials_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("diffdistill.cli.choosing.child", lambda *_: (DiskError.exit_code, ""))
    monkeypatch.setattr("diffdistill.cli.choosing.study_of", lambda *_: None)
    monkeypatch.setattr("diffdistill.cli.choosing.front", lambda _study, one, _trials, train: train(one, ("to_q",)))
    with pytest.raises(DiskError, match="make some, and go on in"):
        search_adapters(search(tmp_path), 3)
    said = f"{AT_WORK} 'x'; wait"
    monkeypatch.setattr("diffdistill.cli.choosing.child", lambda *_: (ConfigError.exit_code, said))
    with pytest.raises(ConfigError, match="to_q' is still at work, see above; wait until it has ended"):
        search_adapters(search(tmp_path), 3)
    with pytest.raises(ConfigError, match="a search of 0 trials finds nothing"):
        search_adapters(search(tmp_path), 0)


def figures_of(chosen):
    """The more layers, the better the fit and the more copies; to_k alone fails."""
    return None if chosen == ("to_k",) else [10.0 - len(chosen), 1.0 - 0.2 * len(chosen) - 0.1 * ("to_v" in chosen)]


def test_a_study_tells_what_no_choice_beats_and_goes_on_after_a_kill(tmp_path):
    pytest.importorskip("optuna")
    one, ran = search(tmp_path), []

    def killed(_search, chosen):
        ran.append(chosen)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return figures_of(chosen)

    with pytest.raises(KeyboardInterrupt):
        front(study_of(one, 0), one, 12, killed)
    cut = ran[-1]
    found = front(study_of(one, 0), one, 12, lambda _search, chosen: (ran.append(chosen), figures_of(chosen))[1])
    assert ran[4] == cut  # first what was cut short
    study = study_of(one, 0)
    assert sum(trial.state.name == "COMPLETE" or "failed" in trial.user_attrs for trial in study.trials) == 12
    again = front(study, one, 12, lambda *_: pytest.fail("nothing is left to do"))
    assert again == found
    assert all(values == figures_of(chosen) for chosen, values in found)
    tried = {chosen: figures_of(chosen) for chosen in ran if figures_of(chosen) is not None}
    for _, (fid, share) in found:
        assert not any(f <= fid and s >= share and (f, s) != (fid, share) for f, s in tried.values())
    assert ("to_k",) not in dict(found)
    assert () not in ran
    with pytest.raises(ConfigError, match="holds the search of"):
        study_of(search(tmp_path, candidates=("to_q", "to_k")), 0)


def test_a_search_of_which_every_run_failed_is_no_success(tmp_path):
    pytest.importorskip("optuna")
    one = search(tmp_path)
    with pytest.raises(ConfigError, match="none of the 3 runs in"):
        front(study_of(one, 0), one, 3, lambda *_: None)
