"""`doctor` names what is broken and the one command that mends it."""

import json
from types import SimpleNamespace

import pytest

from diffdistill.errors import DiskError
from diffdistill.parts import doctor

NONE = dict.fromkeys(doctor.NAMES)
TORCH = {
    "cuda": None,
    "build": None,
    "threads": 2,
    "bf16": True,
    "taken": "flash",
    "dtype": "float32",
    "kernels": ["flash", "math"],
}


def package(folder, name, version, source):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_this_environment_is_sound(python):
    done = python("-m", "diffdistill", "doctor", "--json", "-", timeout=300)
    found = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert {name: check for name, check in found.items() if check["status"] == "fail"} == {}
    assert (done.code, done.err) == (0, "")
    taken, _, others = found["attention"]["detail"].partition(" runs (float")
    assert {taken, "math"} <= set(others.partition(": ")[2].split(", "))
    assert "SHA-256 right" in found["assets"]["detail"]


def test_a_package_that_breaks_on_import_is_reported_and_not_suffered(monkeypatch, tmp_path):
    package(tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    package(tmp_path, "xformers", "0.0.35", "raise OSError('libtorch.so: undefined symbol')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    versions = doctor.installed()
    assert (versions["torchvision"], versions["xformers"]) == ("0.28.0", "0.0.35")
    vision = doctor.check_torchvision(versions, doctor.probe(doctor.TORCHVISION))
    assert vision.status == "fail"
    assert vision.detail.endswith("do not fit: RuntimeError: operator torchvision::nms does not exist")
    assert vision.fix.endswith("-m pip uninstall -y torchvision")
    former = doctor.check_xformers(versions, doctor.probe("import xformers"))
    assert former.status == "warn"
    assert former.detail == "0.0.35 has no kernel for this machine: OSError: libtorch.so: undefined symbol"
    assert doctor.check_diffusers(versions, {"error": "operator torchvision::nms does not exist"}).fix == vision.fix


def test_what_is_not_installed_is_no_fault():
    absent = [doctor.check_torchvision(NONE, {}), doctor.check_xformers(NONE, {})]
    assert [check.status for check in absent] == ["ok", "ok"]
    optional = {check.name: check for check in doctor.check_optional(NONE, {}, {})}
    assert {check.status for check in optional.values()} == {"warn"}
    assert optional["transformers"].detail == "not installed: no text-to-image models, CLIP scores and rewards"
    assert optional["transformers"].fix.endswith("-m pip install transformers")


def test_a_package_that_is_there_and_does_not_work_is_not_called_sound():
    versions = {**NONE, "pyarrow": "26.0.1", "matplotlib": "3.0", "peft": "0.21.2"}
    facts = {"pyarrow": {"error": "ImportError: libarrow.so is missing"}, "matplotlib": {}, "peft": {}}
    checks = {check.name: check for check in doctor.check_optional(versions, facts, {"matplotlib": ">=3.7"})}
    assert checks["pyarrow"].status == "warn"
    assert "26.0.1 cannot be imported (ImportError: libarrow.so is missing): no parquet" in checks["pyarrow"].detail
    assert "3.0 is out of range, >=3.7 is needed" in checks["matplotlib"].detail
    assert checks["matplotlib"].fix.endswith("install 'matplotlib>=3.7'")
    assert checks["peft"].status == "ok"
    assert "transformers" in doctor.ranges()


def test_a_probe_reports_the_complaint_of_what_it_ran():
    assert doctor.probe("print('{}'); print('bye')") == {}
    assert doctor.probe("print('bye')") == {"error": "it ends without an answer"}
    assert doctor.probe("print('noise'); print('{\"a\": 1}')") == {"a": 1}
    assert doctor.probe("raise ValueError('broken')") == {"error": "ValueError: broken"}
    assert "error" in doctor.probe("import os; os._exit(3)")


def test_versions_compare_by_number():
    assert doctor.release("2.13.0+cpu") == (2, 13, 0)
    assert doctor.release("1.18.1") >= (1, 18) > doctor.release("1.9.0rc1")


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ({"scipy": "1.18.1", "clean-fid": "0.1.35"}, "warn"),
        ({"scipy": "1.17.1", "clean-fid": "0.1.35"}, "ok"),
        ({"scipy": "1.18.1", "clean-fid": "0.1.36"}, "ok"),
        ({"transformers": "5.23.0", "torchmetrics": "1.9.0"}, "warn"),
        ({"transformers": "4.57.1", "torchmetrics": "1.9.0"}, "ok"),
        ({"transformers": "5.23.0", "torchmetrics": "1.10.0"}, "ok"),
    ],
)
def test_known_breaks_between_reference_packages(versions, status):
    (check,) = doctor.check_references(NONE | versions)
    assert check.status == status
    assert bool(check.fix) == (status == "warn")


def test_no_reference_packages_is_nothing_to_say():
    assert doctor.check_references(NONE | {"scipy": "1.18.1", "transformers": "5.0"}) == []


def test_torch_and_its_device(monkeypatch):
    versions = NONE | {"torch": "2.13.0+cpu"}
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert [check.status for check in doctor.check_torch(versions, TORCH)] == ["ok", "ok", "ok"]
    assert [check.status for check in doctor.check_torch(versions, TORCH | {"kernels": []})] == ["ok", "ok", "fail"]
    assert [check.status for check in doctor.check_torch(versions, {"error": "ImportError: x"})] == ["fail"]
    gpu = doctor.check_torch(versions, TORCH | {"cuda": "NVIDIA H100", "build": "13.2"})[1]
    assert (gpu.status, gpu.detail) == ("ok", "NVIDIA H100, bf16 in hardware")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "torch is a CPU build" in doctor.check_torch(versions, TORCH)[1].detail
    assert "driver may be too old" in doctor.check_torch(versions, TORCH | {"build": "13.2"})[1].detail


def test_a_package_out_of_range_is_named_with_its_range(monkeypatch):
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["pydantic<2", "pyyaml>=6", "absent>=1", "x; extra == 'y'"]
    )
    check = doctor.check_core()
    assert (check.status, check.detail) == ("fail", "missing or out of range: pydantic<2, absent>=1")
    assert check.fix.endswith("-m pip install 'pydantic<2' 'absent>=1'")


def test_a_full_disk(monkeypatch, tmp_path):
    for free, status in ((1 << 26, "fail"), (1 << 30, "warn"), (1 << 40, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        assert doctor.check_disk(tmp_path).status == status


def test_a_damaged_or_missing_bundled_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  a\n")
    assert doctor.check_assets(tmp_path).status == "ok"
    (tmp_path / "a").write_bytes(b"abd")
    assert doctor.check_assets(tmp_path).detail == "a is damaged"
    (tmp_path / "a").unlink()
    assert doctor.check_assets(tmp_path).detail == "a is missing"
    (tmp_path / "SHA256SUMS").unlink()
    assert doctor.check_assets(tmp_path).status == doctor.check_assets(None).status == "fail"


def test_findings_are_printed_or_written_and_a_failure_is_exit_code_1(monkeypatch, capsys, tmp_path):
    checks = [doctor.Check("one", "ok", "fine"), doctor.Check("two", "fail", "broken", "pip install two")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    file = tmp_path / "x.json"
    assert doctor.run(SimpleNamespace(json=str(file))) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["ok", "one", "fine"], ["fail", "two", "broken"], ["mend:", "pip", "install", "two"]]
    assert json.loads(file.read_text())["ok"] is False
    monkeypatch.setattr(doctor, "examine", lambda: checks[:1])
    assert doctor.run(SimpleNamespace(json=None)) == 0
    with pytest.raises(DiskError, match="No space left on device"):
        doctor.run(SimpleNamespace(json="/dev/full"))
