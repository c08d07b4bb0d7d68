"""What `calibrate` put beside a model is used beside its export, too."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_teacher

from diffdistill import Denoiser
from diffdistill.errors import ConfigError, DiffDistillError
from diffdistill.export.command import export
from diffdistill.export.formats import Wish
from diffdistill.parts.exposure_bias.corrections import BOTH, SCALE, SHIFT, Calibration, Entry, read_corrections
from diffdistill.pipelines.folder import weights_digest
from diffdistill.sampling.leak_file import LeakFile, leak_for
from diffdistill.sampling.signal_leak import fit_leak

FIT = {"b": 1.01, "window": 0, "cutoff": 0.0}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model and, beside it, a calibration and a leak."""
    model = tmp_path_factory.mktemp("fitted") / "model"
    tiny_teacher().save_pretrained(model, role="teacher")
    entry = Entry("euler", 10, dict.fromkeys((SCALE, SHIFT, BOTH), FIT))
    Calibration("it", weights_digest(model), {}, 0.25, {}, (entry,)).save(model / "calibration.json")
    LeakFile(fit_leak(torch.randn(9, 1, 8, 8)), "it", weights_digest(model), {}).save(model / "signal_leak.json")
    return model


def corrected(folder):
    return read_corrections(str(folder), tiny_teacher().process, "euler", 10, "auto", None, None).b


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", None])
def test_it_is_of_the_exported_weights(fitted, tmp_path, dtype):
    export(str(fitted), tmp_path / "out", Wish("diffusers", dtype))
    assert corrected(tmp_path / "out") == corrected(fitted) == 1.01
    ours, theirs = (leak_for(Denoiser.from_pretrained(str(at)), "auto").law for at in (tmp_path / "out", fitted))
    assert torch.equal(ours.root, theirs.root)
    content = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert content["model"] == ("it" if dtype is None else f"it, its weights in {dtype}")


def test_it_may_be_made_anew(fitted, tmp_path):
    export(str(fitted), tmp_path / "out", Wish("diffusers", "float16"))
    (tmp_path / "out" / "calibration.json").unlink()
    assert Denoiser.from_pretrained(str(tmp_path / "out")).role == "teacher"  # its record asks for no such file


def test_a_file_of_other_weights_or_a_changed_one_stays_refused(fitted, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(fitted, model)
    leak = leak_for(Denoiser.from_pretrained(str(model)), "auto")
    replace(leak, weights_sha256="0" * 64).save(model / "signal_leak.json")
    changed = (model / "calibration.json").read_text().replace("1.01", "1.02")
    (model / "calibration.json").write_text(changed)
    export(str(model), tmp_path / "out", Wish("diffusers", "float16"))
    with pytest.raises(ConfigError, match="was made for other weights"):
        leak_for(Denoiser.from_pretrained(str(tmp_path / "out")), "auto")
    with pytest.raises(DiffDistillError, match="it was changed"):
        corrected(tmp_path / "out")
