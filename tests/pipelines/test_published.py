"""No place of one machine is published with a model."""

import pytest

from diffdistill.pipelines.folder import published
from diffdistill.reporting.model_card import metrics_section, public_settings
from tests.worlds.tiny import tiny_teacher


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("/home/alice/my data/set", "set"),
        ("/home/alice/set/", "set"),
        ("~/set", "set"),
        ("C:\\Users\\alice\\set", "set"),
        ("\\\\server\\share\\set", "set"),
        ("/home/alice/reward.py:score", "reward.py:score"),
        ("clip:/home/alice/clip", "clip:clip"),
        ("could not be kept in /home/alice/.cache (no room): set it", "could not be kept in .cache (no room): set it"),
        ("builtin:fashion_mnist", "builtin:fashion_mnist"),
        ("owner/name", "owner/name"),
        ("data/set", "data/set"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("lower is better / higher is better", "lower is better / higher is better"),
        ({"a": ["/home/alice/b", 3, None]}, {"a": ["b", 3, None]}),
    ],
)
def test_of_a_path_of_this_machine_the_last_part_stays(given, left):
    assert published(given) == left


def test_no_file_of_a_model_holds_the_place_of_its_data(tmp_path):
    place = str(tmp_path / "home of alice" / "set")
    evaluation = {
        "metrics": {"fid": {"value": 1.0}},
        "protocol": {"num_images": 4, "reference": {"name": place}, "features": {"id": f"clip:{place}"}},
        "warnings": [f"nothing could be kept in {tmp_path}/kept"],
    }  # fmt: skip
    settings = f"data: {{path: '{place}'}}\nteacher: '{place}'\nmethod: {{reward: {{name: '{place}/r.py:f'}}}}\n"
    from diffdistill.reporting.model_card import model_card

    tiny_teacher().save_pretrained(
        tmp_path / "model", role="student", levels=[2.0], data={"path": place, "fingerprint": "ab"}, teacher=place,
        reward={f"{place}/r.py:f": None},
        card=lambda metadata: model_card(metadata=metadata, evaluation=evaluation, config=settings),
    )  # fmt: skip
    held = [f for f in (tmp_path / "model").rglob("*") if f.is_file() and str(tmp_path).encode() in f.read_bytes()]
    assert held == []
    assert "set" in (tmp_path / "model" / "README.md").read_text()
    assert str(tmp_path) not in public_settings(settings) + metrics_section(evaluation)
