"""The front door: flags, exit codes, one line per error, and no torch before it is needed."""

import logging
import os
import subprocess
import sys

import pytest

from diffdistill import __version__
from diffdistill.cli import front as cli
from diffdistill.sampling.sampler import SAMPLERS

MAIN = "import sys; from diffdistill.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
SAMPLE = ["sample", "m", "--num-images", "4", "--out", "o"]
EVALUATE = ["evaluate", "--reference", "r"]
PUSH = ["push", "m", "--repo", "a/b"]


# ---- at once, without torch ----


def test_the_package_runs_as_a_module(python):
    done = python("-m", "diffdistill", "--version")
    assert (done.code, done.out) == (0, f"diffdistill {__version__}\n")
    assert python("-m", "diffdistill", "distil").code == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sample"], 2),
        (["distil"], 2),
        (["export", "m"], 2),
        (["calibrate", "m"], 2),
        (["train", "nowhere.yaml"], 2),
        (["train", "fashion_mnist/teacher", "optimizer.lr=1"], 2),
        (["distill", "fashion_mnist/teacher"], 2),
        (["evaluate", "--images", "x"], 2),
        (["config", "show", "train", "fashion_mnist/teacher"], 0),
    ],
    ids=str,
)
def test_answers_at_once_and_without_torch(python, words, code):
    done = python("-c", MAIN, *words)
    assert done.out.splitlines()[-1] == f"False {code}"
    if code:
        assert done.err.startswith("diffdistill: error: ")


@pytest.mark.parametrize(
    "words", [["--help"], ["sample", "--help"], ["train", "x.yaml"], ["distill", "fashion_mnist/teacher", "a=1"]]
)
def test_help_and_errors_cost_less_than_half_a_second(python, words):
    # Processor time, which a neighbour on the same core lengthens too, by a half and more: the best of some.
    tries = (python("-m", "diffdistill", *words).cpu_seconds for _ in range(20))
    assert any(seconds < 0.5 for seconds in tries)


def test_help_lists_every_verb(ask):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"diffdistill {__version__}\n"


@pytest.mark.parametrize("verb", cli.verbs())
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"usage: diffdistill {verb}" in capsys.readouterr().out


# ---- usage errors ----


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "a verb is missing; choose one of train, distill, align, sample"),
        (["distil"], "there is no verb 'distil'; did you mean 'distill'?"),
        (["zzz"], "there is no verb 'zzz'; choose one of train, distill, align, sample"),
        (["give", "m"], "there is no verb 'give'; choose one of train, distill"),
        (["sample", "m"], "sample: --out is missing"),
        (["sample", "m", "--out", "o"], "sample: --num-images is missing"),
        (["sample", "m", "--out", "o", "--prompt", " "], "sample: --prompt: ' ' is no prompt; write a text"),
        (["sample", "m", "--out", "o", "--prompt", "a\udcff"], r"sample: --prompt: 'a\udcff' is no prompt"),
        (["train"], "train: CONFIG is missing"),
        (
            ["train", "c", "--output-dir", "x"],
            "train: unknown flag '--output-dir'; a setting is written without dashes: ou",
        ),
        ([*SAMPLE, "--guidence-scale=2"], "sample: unknown flag '--guidence-scale', did you mean '--guidance-scale'?"),
        ([*SAMPLE, "extra"], "sample: unexpected 'extra'"),
        ([*SAMPLE, "--steps", "0"], "sample: --steps: '0' is no whole number >= 1"),
        ([*SAMPLE, "--steps", "1.5"], "sample: --steps: '1.5' is no whole number >= 1"),
        ([*SAMPLE, "--seed", "-1"], "sample: --seed: '-1' is no whole number >= 0"),
        ([*SAMPLE, "--quality", "0"], "sample: --quality: '0' is no whole number from 1 to 100"),
        (["ui", "m", "--port", "99999"], "ui: --port: '99999' is no whole number from 1 to 65535"),
        ([*PUSH, "--license", ""], "push: --license: '' is no name of a licence; write one of the Hub's, as mit"),
        ([*PUSH, "--license", "mit\nx: y"], r"push: --license: 'mit\nx: y' is no name of a licence"),
        ([*SAMPLE, "--seed", "4294967296"], "sample: --seed: '4294967296' is above 4294967295, the highest there is"),
        ([*SAMPLE, "--guidance-scale", "nan"], "sample: --guidance-scale: 'nan' is no number >= 0"),
        (
            [*SAMPLE, "--class-labels", "0,-1"],
            "sample: --class-labels: '0,-1' is no list of class labels such as 0,1,2",
        ),
        ([*SAMPLE, "--class-labels", ""], "sample: --class-labels: '' is no list of class labels such as 0,1,2"),
        ([*SAMPLE, "--sampler", "huen"], "sample: --sampler: 'huen' is no sampler; choose of consistency, ddpm"),
        (
            [*SAMPLE, "--device", "gpu"],
            "sample: --device: 'gpu' is no device; give auto, cpu, cuda, cuda:N, xpu, xpu:N or mps",
        ),
        (
            [*SAMPLE, "--epsilon-scaling", "1,2,3"],
            "sample: --epsilon-scaling: '1,2,3' is not of the form auto or B or K,B",
        ),
        (
            [*SAMPLE, "--time-shift-sampler", "3"],
            "sample: --time-shift-sampler: '3' is not of the form auto or WINDOW,CU",
        ),
        ([*SAMPLE, "--prompt", "a", "--prompts", "b"], "sample: --prompts: not allowed with argument --prompt"),
        (EVALUATE, "evaluate: one of the arguments --images --model is required"),
        ([*EVALUATE, "--images", "a", "--model", "b"], "evaluate: --model: not allowed with argument --images"),
        (
            [*EVALUATE, "--images", "a", "--metrics", "fid,fod"],
            "evaluate: --metrics: 'fod' is no metric; choose of fid,kid",
        ),
        (
            [*EVALUATE, "--images", "a", "--backend", "x"],
            "evaluate: --backend: 'x' is no backend; choose of clean-fid,native",
        ),
        (["checkpoint", "rm", "x"], "checkpoint: action: invalid choice: 'rm'"),
        (["config", "show", "sample"], "config show: 'sample' has no settings; say whose first: one of train"),
        (["config", "diff", "train", "a"], "config diff train: 1 CONFIG given, needed are 2"),
    ],
)
def test_a_usage_error_is_one_sentence(ask, words, sentence):
    code, out, err = ask(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"diffdistill: error: {sentence}")
    assert err.count("\n") == 1


# ---- what the verbs receive ----


def test_dashes_and_underscores_are_equal_in_flags(stub, ask):
    calls = stub("sample")
    assert (
        ask("sample", "m", "--num_images=4", "--out", "o_o", "--class_labels", "1,2", "--sampler", "dpm-solver")[0]
        == 0
    )
    args = calls[0]
    assert (args.model, args.num_images, args.out, args.class_labels, args.sampler) == (
        "m",
        4,
        "o_o",
        (1, 2),
        "dpm_solver",
    )


def test_defaults_of_sample_and_evaluate(stub, ask):
    sample, evaluate = stub("sample"), stub("evaluate")
    ask(*SAMPLE)
    ask(*EVALUATE, "--model", "a", "--model", "b", "--metrics", "kid,fid,kid")
    one, two = vars(sample[0]), vars(evaluate[0])
    left_open = (
        "steps",
        "class_labels",
        "prompt",
        "prompts",
        "guidance_scale",
        "sampler",
        "epsilon_scaling",
        "device",
    )
    for args in (one, two):
        assert [args[name] for name in (*left_open, "time_shift_sampler")] == [None] * 9
        assert (args["seed"], args["batch_size"]) == (0, 64)
    assert (two["model"], two["images"], two["metrics"], two["num_images"]) == (["a", "b"], None, ("kid", "fid"), None)
    assert (two["split"], two["backend"], two["fid_mode"], two["features"], two["json"]) == (
        "train",
        "native",
        *[None] * 3,
    )


def test_training_verbs_receive_checked_settings(stub, ask):
    calls = stub("train")
    assert ask("--quiet", "train", "fashion_mnist/teacher", "seed=3", "--debug", "output_dir=runs/x")[0] == 0
    assert (calls[0].config.seed, calls[0].config.output_dir) == (3, "runs/x")
    assert calls[0].origins["seed"] == "override 'seed=3'"


def test_the_help_names_every_sampler_there_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"of {', '.join(SAMPLERS.names())}, or FILE.py:NAME" in told
    assert {"heun", "dpm_solver", "consistency", "unipc"} <= set(SAMPLERS.names())


def test_what_a_verb_returns_is_the_exit_code(stub, ask):
    stub("verify", lambda what: 1)
    assert ask("verify") == (1, "", "")
    stub("verify", lambda what: None)
    assert ask("verify") == (0, "", "")


@pytest.mark.parametrize(
    ("verb", "words", "names"),
    [
        ("sample", ["~/m", "--num-images", "1", "--out=~/o", "--prompts", "~/p.txt"], ["model", "out", "prompts"]),
        ("evaluate", ["--images=~/i", "--reference=~/r", "--features=~/f.pt", "--json=~/j"], ["images", "reference"]),
        ("evaluate", ["--model", "~/m", "--reference=~/r", "--plot=~/p.svg"], ["model", "plot"]),
        ("calibrate", ["~/m", "--data=~/d", "--out=~/c.json"], ["model", "data", "out"]),
        ("report", ["~/run", "--out=~/r.html"], ["run", "out"]),
        ("convert", ["~/x.pkl", "--out=~/o", "--config=~/c.json"], ["source", "out", "config"]),
        ("checkpoint", ["ls", "~/run"], ["run"]),
    ],
)
def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, verb, words, names):
    monkeypatch.setenv("HOME", "/home/me")
    args = vars(cli.parser_of(cli._verb(verb)).parse(words))
    assert "~" not in str(args)
    for name in names:
        assert "/home/me/" in str(args[name])


def test_a_tilde_in_a_text_stays():
    args = cli.parser_of(cli._verb("sample")).parse(["m", "--num-images=1", "--out=o", "--prompt", "~ a wave"])
    assert args.prompt == "~ a wave"


# ---- the terminal ----


@pytest.mark.parametrize(
    ("words", "terminal", "value"), [([], True, None), ([], False, "1"), (["--quiet"], True, "1")]
)
def test_progress_bars_are_for_terminals(stub, ask, monkeypatch, words, terminal, value):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    stub("report")
    ask("report", "run", *words)
    assert os.environ.get("TQDM_DISABLE") == value


def test_advice_on_torchvision_is_not_passed_on(stub, ask, caplog):
    told = logging.getLogger("transformers.utils.import_utils")
    stub("report", lambda what: told.warning("`Fast` requires torchvision") or told.warning("a cache moved"))
    ask("report", "run")
    assert caplog.messages == ["a cache moved"]


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "diffdistill", "config", "schema", "train"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)


# ---- config ----


def test_config_shows_explains_and_compares(ask, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("output_dir: a\nseed: 1\n")
    code, out, _ = ask("config", "show", "train", str(path), "--set", "seed=2")
    assert code == 0
    assert "seed: 2  # override 'seed=2'\n" in out
    assert ask("config", "diff", "train", str(path), str(path)) == (0, "", "")
    other = tmp_path / "y.yaml"
    other.write_text("base: x.yaml\noptimizer: {learning_rate: 0.5}\n")
    assert ask("config", "diff", "train", str(path), str(other)) == (1, "optimizer.learning_rate: 0.001 | 0.5\n", "")
    assert '"additionalProperties": false' in ask("config", "schema", "distill")[1]
    keys = ask("config", "keys", "distill")[1].splitlines()
    assert "output_dir: REQUIRED" in keys
    assert any(line.startswith("method.alpha: 1.0") for line in keys)
