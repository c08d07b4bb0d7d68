"""Base files, overrides, and the sentences about what does not fit."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from diffdistill.config import dump_config, load_config
from diffdistill.config.align import Align
from diffdistill.config.loader import configs_folder, find_config
from diffdistill.config.schema import Distill, Section, Train
from diffdistill.errors import ConfigError


class Optim(Section):
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None


class Plain(Section):
    name: Literal["plain"]
    weight: float = 1.0


class Other(Section):
    kind: Annotated["Plain | Fancy", Field(discriminator="name")]


class Fancy(Section):
    name: Literal["fancy"]
    alpha: float = 0.5
    optim: Optim = Optim(lr=3.0)


class Job(Section):
    out: str
    seed: Annotated[int, Field(ge=0)] = 0
    train_batch_size: int = 64
    fast: bool = False
    mode: Literal["no", "bf16"] = "no"
    resume: Literal["latest"] | int | None = None
    names: tuple[str, ...] = ("a",)
    optim: Optim = Optim(lr=1e-3, clip=10.0)
    critic: Optim = Optim(lr=2e-3)
    method: Annotated[Plain | Fancy, Field(discriminator="name")] = Plain(name="plain")

    @model_validator(mode="after")
    def _check(self) -> "Job":
        if self.fast and self.mode == "no":
            raise ValueError("'fast' needs mode=bf16")
        return self


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write `x.yaml` (and others by name) in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "x.yaml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write


def complaint(path: str, *overrides: str, model: type = Job) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(model, path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_later_layers_win_and_every_value_knows_its_place(config):
    config("seed: 1\nout: a\noptim:\n  lr: 0.1\n  clip: 5.0\nnames: [p, q]", "parents/one.yaml")
    config("base: one.yaml\nseed: 2\ntrain_batch_size: 8", "parents/two.yaml")
    config("base: [parents/two.yaml]\noptim: {lr: 0.2}\nnames: [r]", "x.yaml")
    resolved = load_config(Job, "x.yaml", ["critic.betas=[0.1, 0.2]", "seed=3", "train-batch-size=4"])
    job = resolved.config
    assert (job.seed, job.out, job.train_batch_size, job.names) == (3, "a", 4, ("r",))
    assert job.optim == Optim(lr=0.2, clip=5.0)
    assert job.critic == Optim(lr=2e-3, betas=(0.1, 0.2))
    assert resolved.origins == {
        "seed": "override 'seed=3'",
        "out": "parents/one.yaml:2",
        "optim.lr": "x.yaml:2",
        "optim.clip": "parents/one.yaml:5",
        "names": "x.yaml:3",
        "train_batch_size": "override 'train-batch-size=4'",
        "critic.betas": "override 'critic.betas=[0.1, 0.2]'",
    }


def test_a_part_of_a_section_keeps_the_other_defaults_of_its_place(config):
    job = load_config(Job, config("out: a\noptim: {clip: 1.0}\nmethod: {name: fancy, optim: {clip: 2.0}}")).config
    assert job.optim == Optim(lr=1e-3, clip=1.0)
    assert job.method == Fancy(name="fancy", optim=Optim(lr=3.0, clip=2.0))
    train = load_config(Train, config("output_dir: a\nlevel: {std: 1.0}\noptimizer: {learning_rate: 1e-2}")).config
    assert (train.level.law, train.optimizer.betas) == ("lognormal", (0.9, 0.99))


def test_a_value_given_as_null_is_null(config):
    assert load_config(Job, config("out: a"), ["optim.clip="]).config.optim.clip is None


def test_the_resolved_text_loads_back_equal(config):
    path = config(
        "out: 'no'\noptim: {lr: 1e-5, clip: null}\nnames: ['1e-4', \"two\\nlines\", '# x']\nmethod: {name: fancy}"
    )
    first = load_config(Job, path, ["out=a # b"])
    second = load_config(Job, config(first.text_yaml, "again.yaml"))
    assert second.config == first.config
    assert second.sha256 == first.sha256
    assert load_config(Job, config(dump_config(first.config), "bare.yaml")).config == first.config
    assert "  lr: 1.0e-05  # x.yaml:2\n" in first.text_yaml


def test_the_digest_changes_with_a_value_and_not_with_its_form(config):
    digests = [load_config(Job, config(text)).sha256 for text in ("out: a", "out: 'a'\nseed: 0", "out: a\nseed: 1")]
    assert digests[0] == digests[1] != digests[2]


def test_shipped_configs_go_by_name():
    names = [path.relative_to(configs_folder()).as_posix() for path in configs_folder().rglob("*.yaml")]
    assert "fashion_mnist/teacher.yaml" in names
    for given in ("fashion_mnist/teacher", "fashion_mnist/teacher.yaml", "configs/fashion_mnist/teacher.yaml"):
        assert find_config(given)[0].samefile(configs_folder() / "fashion_mnist" / "teacher.yaml")
        assert find_config(given)[1] == "configs/fashion_mnist/teacher.yaml"


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("base: x.yaml\nout: a", [], "x.yaml: 'base' leads back to this file; remove one link of the circle"),
        ("out: a\nbase: 3", [], "x.yaml:2: 'base' must be a config or a list of configs"),
        ("- 1", [], "x.yaml: holds [1]; a config is a list of 'key: value' lines"),
        ("out: a", ["seed"], "override 'seed' is not allowed after CONFIG; write key=value, e.g. optimizer.learning"),
        ("out: a", ["a..b=1"], "override 'a..b=1' is not allowed after CONFIG"),
        (
            "out: a",
            ["seed=[1"],
            "override 'seed=[1': not valid YAML: expected ',' or ']', but got '<stream end>'; put quo",
        ),
        ("base: nothing\nout: a", [], "config 'nothing' does not exist; shipped configs: "),
    ],
)
def test_what_cannot_be_read_is_one_sentence(config, text, overrides, sentence):
    message = complaint(config(text), *overrides)
    assert message.startswith(sentence)
    assert "\n" not in message


def test_text_that_is_no_unicode(config):
    sentence = "is no character; write the settings as UTF-8 text"
    assert complaint(config('out: "\\ud800"')) == f"x.yaml: '\\ud800' {sentence}"


def test_missing_and_unreadable_files(config, tmp_path):
    assert complaint("nowhere.yaml").startswith("config 'nowhere.yaml' does not exist; shipped configs: ")
    assert complaint("fashion_mnist/techer").endswith("did you mean 'fashion_mnist/teacher'?")
    assert complaint(".") == "'.' is a folder; give a YAML file"
    assert complaint("x" * 5000).startswith("'xxx")
    Path("latin.yaml").write_bytes("out: a\nnames: [caf\xe9]".encode("latin-1"))
    assert complaint("latin.yaml") == "latin.yaml:2: not UTF-8 text; save the file as UTF-8"
    Path("big.yaml").write_bytes(b"#" * (2 << 20))
    assert complaint("big.yaml").startswith("big.yaml: larger than 128 KiB")


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim: {lrr: 1}", "unknown key 'optim.lrr' (did you mean 'optim.lr'?)"),
        ("optm: {lr: 1}", "unknown key 'optm' (did you mean 'optim'?)"),
        ("betas: 1", "unknown key 'betas' (did you mean 'optim.betas' or 'critic.betas'?)"),
        ("batch_size: 1", "unknown key 'batch_size' (did you mean 'train_batch_size'?)"),
        ("tbs: 1", "unknown key 'tbs' (did you mean 'train_batch_size'?)"),
        ("method: {name: plain, alpha: 1}", "unknown key 'method.alpha' (only with method.name=fancy)"),
        ("optim: {zzz: 1}", "unknown key 'optim.zzz' (keys of 'optim': lr, betas, clip)"),
        ("seed: true", "'seed' is true; it must be a whole number"),
        ("seed: 1.0", "'seed' is 1.0; it must be a whole number"),
        ("seed: '1'", "'seed' is '1'; it must be a whole number"),
        ("seed: -1", "'seed' is -1; it must be a number >= 0"),
        ("optim: {lr: 0}", "'optim.lr' is 0; it must be a number > 0"),
        ("optim: {lr: true}", "'optim.lr' is true; it must be a number"),
        ("optim: {lr: .inf}", "'optim.lr' is .inf; it must be a finite number"),
        ("optim: {lr: .nan}", "'optim.lr' is .nan; it must be a finite number"),
        ("optim: {lr: fast}", "'optim.lr' is 'fast'; it must be a number"),
        ("optim: {betas: 0.9}", "'optim.betas' is 0.9; it must be a list"),
        ("optim: {betas: [0.9, x]}", "'optim.betas.1' is 'x'; it must be a number"),
        ("optim: 3", "'optim' is 3; it must be a section with keys of lr, betas, clip"),
        ("fast: yes", "'fast' is 'yes'; it must be true or false"),
        ("fast: 1", "'fast' is 1; it must be true or false"),
        ("mode: bf61", "'mode' is 'bf61'; it must be one of 'no' or 'bf16' (did you mean 'bf16'?)"),
        (
            "resume: lates",
            "'resume' is 'lates'; it must be one of 'latest' or a whole number (did you mean 'latest'?)",
        ),
        (
            "method: {name: fanci}",
            "'method.name' is 'fanci'; it must be one of 'plain', 'fancy' (did you mean 'fancy'?)",
        ),
        ("method: fancy", "'method' is 'fancy'; it must be a section with 'name': one of 'plain' or 'fancy'"),
        ("method: {alpha: 1}", "unknown key 'method.alpha' (only with method.name=fancy)"),
        ("names: 3", "'names' is 3; it must be a list"),
        ("names: [" + "abc, " * 50 + "3]", "'names.50' is 3; it must be text"),
    ],
)
def test_a_setting_that_does_not_fit_names_line_value_and_remedy(config, text, sentence):
    assert complaint(config(f"out: a\n{text}")) == f"x.yaml:2: {sentence}"


def test_the_same_sentences_for_overrides(config):
    path = config("out: a\noptim: {lr: 0.1}")
    assert complaint(path, "optim.lrr=3") == (
        "override 'optim.lrr=3': unknown key 'optim.lrr' (did you mean 'optim.lr'?)"
    )
    assert complaint(path, "optim.lr=0") == "override 'optim.lr=0': 'optim.lr' is 0; it must be a number > 0"


def test_lists_of_the_wrong_length_and_long_values(config):
    assert complaint(config("out: a\noptim: {betas: [1, 2, 3]}")) == (
        "x.yaml:2: 'optim.betas' is [1, 2, 3]; it must be a list of at most 2 items"
    )
    assert complaint(config("out: a\noptim: {betas: [1]}")).startswith("x.yaml:2: 'optim.betas.1' is missing")
    assert len(complaint(config(f"out: a\nseed: {'x' * 500}"))) < 130


def test_a_section_of_a_family_needs_its_name(config):
    allowed = "it must be a section with 'name': one of 'plain' or 'fancy'"
    assert complaint(config("kind: {alpha: 1}"), model=Other) == f"x.yaml:1: 'kind' is {{alpha: 1}}; {allowed}"
    assert complaint(config("kind: fancy"), model=Other) == f"x.yaml:1: 'kind' is 'fancy'; {allowed}"
    assert complaint(config(""), model=Other) == "x.yaml: 'kind' is missing; add it, or say kind.name=VALUE"


def test_a_missing_key_and_a_broken_rule_name_the_file(config):
    assert complaint(config("seed: 1")) == "x.yaml: 'out' is missing; add it, or say out=VALUE"
    assert complaint(config("out: a\nfast: true")) == "x.yaml:2: 'fast' needs mode=bf16"


def test_all_problems_come_at_once_in_the_order_of_the_file(config):
    lines = complaint(config("optim:\n  lrr: 1\nseed: x\nfoo_bar_baz: 1"), "mode=fp8").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "x.yaml",
        "x.yaml:2",
        "x.yaml:3",
        "x.yaml:4",
        "override 'mode=fp8'",
    ]


@pytest.mark.parametrize(
    ("name", "more"),
    [("fashion_mnist/teacher", []), ("fashion_mnist/dmd2", []), ("align/mapo_sd15", ["model=m", "data.path=p"])],
)
def test_half_precision_is_refused_where_no_loss_is_scaled(name, more):
    verb = Align if name.startswith("align") else Train if name.endswith("teacher") else Distill
    with pytest.raises(ConfigError, match=r"mixed_precision 'fp16' turns small gradients into 0.*use bf16"):
        load_config(verb, name, ["output_dir=out", *more, "mixed_precision=fp16"])


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("[-1]", "'sample_classes.0' is -1; it must be a number >= 0"),
        ("[]", "'sample_classes' is []; it must be a list"),
    ],
)
def test_a_list_with_a_wrong_member_is_not_told_to_be_empty(ask, tmp_path, word, sentence):
    code, _, err = ask("distill", "fashion_mnist/dmd2", f"output_dir={tmp_path / 'run'}", f"sample_classes={word}")
    assert code == 2
    assert sentence in err
    assert err.count("sample_classes' is") + err.count("sample_classes.0' is") == 1


def test_a_run_is_not_written_to_a_stream(ask):
    code, _, err = ask("distill", "fashion_mnist/dmd2", "output_dir=-")
    assert (code, "output_dir '-' is no stream here" in err) == (2, True)


def test_muon_with_adapters_is_refused_before_anything_is_loaded(ask, tmp_path):
    code, _, err = ask("distill", "emoji/one_step", "student.lora.rank=2", f"output_dir={tmp_path / 'r'}")
    assert (code, err.count("\n")) == (2, 1)
    assert "set student.regression.muon=null, or student.lora=null" in err
