"""Names in flags and settings that cannot be are told before torch is imported, in one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest

MAIN = """
import sys
from diffdistill.cli import main
for line in open(sys.argv[1], encoding="utf-8").read().splitlines():
    code = main(line.split(" "))
    print("torch" in sys.modules, code)
"""

REFUSED = {
    "sample nowhere --num-images 1 --out o": (4, "model 'nowhere' is not a diffusers folder"),
    "sample folder --num-images 1 --out o": (4, "model folder 'folder' has no model_index.json"),
    "sample folder/typo --num-images 1 --out o": (4, "model 'folder/typo' is not a diffusers folder"),
    "evaluate --model nowhere@4 --reference data.npz": (4, "model 'nowhere' is not a diffusers folder"),
    "evaluate --images data.npz --reference nowhere": (3, "there is no file or folder 'nowhere'"),
    "evaluate --images data.npz --reference /dev/null": (3, "is a device or a pipe"),
    "evaluate --images data.npz --reference data.npz --features foo": (2, "no feature extractor 'foo'"),
    "evaluate --images data.npz --reference data.npz --features ": (2, "no feature extractor ''"),
    "calibrate nowhere --data data.npz --out c.json": (4, "model 'nowhere' is not a diffusers folder"),
    "bench --model nowhere": (4, "model 'nowhere' is not a diffusers folder"),
    "distill fashion_mnist/dmd2 output_dir=o teacher=nowhere": (4, "model 'nowhere' is not a diffusers folder"),
    "train fashion_mnist/teacher output_dir=o data.path=~nobody/x": (3, "there is no file or folder '~nobody/x'"),
    "train fashion_mnist/teacher output_dir=data.npz": (2, "output_dir 'data.npz' is no folder"),
    "train fashion_mnist/teacher output_dir=data.npz/x": (2, "lies in"),
    f"train fashion_mnist/teacher output_dir={'n' * 300}": (2, "cannot be a folder (File name too long)"),
    "train fashion_mnist/teacher output_dir=o evaluation.features=foo": (2, "no feature extractor 'foo'"),
    "distill fashion_mnist/_base output_dir=o": (2, "is a part of other configs and no recipe"),
    "train fashion_mnist/dmd2 output_dir=o": (2, "'fashion_mnist/dmd2' is a config of distill, not of train"),
    "sample builtin:fashion_mnist --num-images 1 --out o": (
        4,
        "'builtin:fashion_mnist' is a data set, and a model is",
    ),
    "sample data.npz --num-images 1 --out o": (4, "'data.npz' is a data set, and a model is asked for"),
    "sample run --num-images 1 --out o": (
        4,
        "'run' is the folder of a run, and a model is asked for; give 'run/model'",
    ),
    "evaluate --images run/model --reference data.npz": (3, "'run/model' is a model, and data are asked for"),
    "evaluate --images data.npz --reference builtin:emoji_teacher": (
        3,
        "'builtin:emoji_teacher' is a model, and data",
    ),
    "evaluate --images data.npz --rewards pikscore": (2, "reward 'pikscore' is not known (did you mean pickscore?)"),
    "distill fashion_mnist/dmd2 teacher=data.npz output_dir=o": (
        4,
        "error: override 'teacher=data.npz': 'data.npz' is",
    ),
    "distill fashion_mnist/dmd2 data.path=nowhere output_dir=o": (
        3,
        "error: override 'data.path=nowhere': there is no",
    ),
    "distill fashion_mnist/dmd2 data.split=foo output_dir=o": (
        3,
        "error: override 'data.split=foo': builtin:fashion_",
    ),
    "distill fashion_mnist/dmd2 data.path=data.npz data.limit=9 output_dir=o": (
        3,
        "override 'data.limit=9': data.npz",
    ),
    "distill fashion_mnist/dmd2 data.path=folder output_dir=o": (
        3,
        "override 'data.path=folder': folder is a folder wi",
    ),
    "distill fashion_mnist/dmd2 data.prompts=lines output_dir=o": (2, "not used with a teacher that draws no texts"),
    "distill emoji/one_step data.prompts=no.txt output_dir=o": (
        3,
        "override 'data.prompts=no.txt': 'no.txt' cannot be",
    ),
    "distill emoji/one_step student.sigma_init=3.0 output_dir=o": (2, "not used with a text-to-image teacher"),
    "distill emoji/one_step evaluation.rewards=[nope] output_dir=o": (
        2,
        "override 'evaluation.rewards=[nope]': reward",
    ),
    "evaluate --images data.npz --rewards clip --split test": (2, "--split is of --reference, which is not given"),
    "evaluate --images data.npz --reference data.npz --metrics prdc --backend clean-fid": (2, "computes fid and kid"),
    "evaluate --images data.npz --reference data.npz --metrics clip --features pixels": (
        2,
        "--features is not used by",
    ),
    "evaluate --images data.npz --reference data.npz --prompt a": (
        2,
        "prompts are not used by fid: add clip or --rew",
    ),
    "evaluate --model run/model --reference data.npz --calibration c.json": (2, "--calibration goes with"),
    "sample run/model --num-images 1 --out o --calibration c.json": (2, "--calibration goes with --epsilon-scaling"),
    "checkpoint ls run --keep 2": (2, "--keep goes with prune, and ls removes nothing"),
    "sample run/model --num-images 1 --out -": (2, "--out - is neither read nor written here: name it, or ./-"),
    "evaluate --images data.npz --reference data.npz --neighbours -": (
        2,
        "--neighbours - is neither read nor written",
    ),
    "sample run/model --out o --prompts -": (2, "--prompts - is neither read nor written here"),
    "train fashion_mnist/teacher data.path=data.npz evaluation.metrics=[per_class_fid] output_dir=o": (
        3,
        "override 'data.path=data.npz': data.npz has no labels, and metric 'per_class_fid' needs them",
    ),
    "distill emoji/one_step data.path=data.npz output_dir=o": (
        2,
        "override 'data.path=data.npz': 'data.npz' has no texts, and the teacher draws texts; give",
    ),
    "train - output_dir=o": (2, "config '-' does not exist"),
    "evaluate --model run/model@0 --reference data.npz": (2, "'run/model@0' asks for a model at 0 steps; write"),
    "distill fashion_mnist/dmd2 data.path=one.npz output_dir=o": (
        3,
        "override 'data.path=one.npz': one.npz has 1 image, and metric 'prdc' needs 6 at least",
    ),
    "train fashion_mnist/teacher data.path=data.npz evaluation.reference=one.npz output_dir=o": (
        3,
        "override 'evaluation.reference=one.npz': one.npz has 1 image, and metric '",
    ),
    "train fashion_mnist/teacher data.path=one.npz evaluation.metrics=[kid] evaluation.reference=data.npz "
    "evaluation.num_images=3 output_dir=o": (
        2,
        "override 'evaluation.num_images=3': evaluation.num_images is 3, and metric 'kid' needs 4 at least; raise it",
    ),
    "train fashion_mnist/teacher output_dir=link": (
        2,
        "override 'output_dir=link': output_dir 'link' is a link to 'no",
    ),
    "config keys train --set seed=1": (2, "--set goes with show"),
    "config show distill align/mapo_sdxl": (2, "'align/mapo_sdxl' is a config of align, not of distill"),
    f"config show train {'n' * 300}": (2, "cannot be a config (File name too long)"),
}


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_names_that_cannot_be_are_told_at_once(tmp_path, python, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("run/model").mkdir(parents=True)
    Path("run/model/model_index.json").write_text("{}")
    os.symlink("nowhere", "link")
    np.savez("data.npz", images=np.zeros((4, 8, 8), np.uint8))
    np.savez("one.npz", images=np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    Path("lines").write_text("\n".join(REFUSED), encoding="utf-8")
    done = python("-c", MAIN, "lines")
    errors = done.err.splitlines()
    assert len(errors) == len(REFUSED)
    for line, answer, error, (code, words) in zip(
        REFUSED, done.out.splitlines(), errors, REFUSED.values(), strict=True
    ):
        assert answer == f"False {code}", line
        assert words in error, line
    assert not Path("o").exists()


def test_a_sentence_about_a_name_of_several_lines_is_one_line(ask):
    code, _, err = ask("report", "a\nb")
    assert code == 4
    assert err.startswith(r"diffdistill: error: 'a\nb'")
    assert err.count("\n") == 1


def test_several_devices_as_data_do_not_hang(ask, tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs FIFOs")
    os.mkfifo(tmp_path / "pipe")
    code, _, err = ask("evaluate", "--images", str(tmp_path / "pipe"), "--reference", "builtin:fashion_mnist")
    assert code == 3
    assert "is a device or a pipe" in err
