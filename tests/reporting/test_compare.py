"""Runs beside each other: grouped by their settings, with the spread over seeds; other protocols do not compare."""

import json
from html.parser import HTMLParser

import pytest
import torch
from test_reporting_report import evaluation

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.reporting.compare import Spread, compared, name_of, unlike
from diffdistill.reporting.compare_page import _breakable, best, write_comparison
from diffdistill.reporting.grid import image_grid


def made(folder, name, method, seed, fid, images=5000):
    run = folder / name
    (run / "samples").mkdir(parents=True)
    image_grid(torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), 2).save(run / "samples/step-000200.png")
    lines = [{"step": s, "time": 0.5 * s, "critic/loss": 1 / s, "gradient/matching": 1.0} for s in (100, 200)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text(
        f"output_dir: {run}\nseed: {seed}\nteacher: t\nmethod: {{name: {method}, alpha: 1.0}}\n"
    )
    result = evaluation(fid)
    result["protocol"]["num_images"] = images
    (run / "evaluation.json").write_text(json.dumps({"student": result}))
    return run


@pytest.fixture
def runs(tmp_path):
    return [
        made(tmp_path, "sid_seed=0", "sid", 0, 1.0),
        made(tmp_path, "sid_seed=1", "sid", 1, 2.0),
        made(tmp_path, "<b>dmd2", "dmd2", 0, 5.0),
    ]


def test_runs_that_differ_by_their_seed_are_one_line_with_the_spread(runs):
    sid, dmd2 = compared(runs).groups
    assert (sid.name, dmd2.name, sid.seeds) == ("sid", "<b>dmd2", ["0", "1"])
    assert sid.settings == {"method.name": "sid"}
    fid = sid.figures["fid"]
    assert (fid.mean, fid.count, fid.deviation) == (1.5, 2, pytest.approx(0.5**0.5))
    assert (dmd2.figures["fid"].deviation, dmd2.figures["fid"].error) == (None, 0.05)  # one seed has no spread
    assert sid.seconds.mean == 100.0


def test_other_protocols_are_refused_or_marked_and_never_best(runs, tmp_path, ask):
    other = made(tmp_path, "few", "sim", 0, 0.1, images=100)
    code, _, err = ask("compare", *map(str, (*runs, other)))
    assert code == 2
    assert "'few' was measured otherwise than the first run (Generated images: 100, not 5,000)" in err
    page = write_comparison([*runs, other], tmp_path / "out", mixed=True).read_text()
    assert "few ‡" in page
    assert "<b>1.50</b>" in page
    assert "<b>0.10</b>" not in page


def test_the_page_is_one_file_that_says_what_differs_and_by_how_much(runs, tmp_path, ask):
    code, out, _ = ask("compare", *map(str, runs), "--out", str(tmp_path / "out"))
    page = tmp_path / "out" / "index.html"
    assert (code, out.splitlines()[-1]) == (0, str(page))
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [["sid", "2", "sid"], ["<b>dmd2", "1", "dmd2"]]
    text = parsed_page(page)
    for words in (
        "sid and <b>dmd2", "seeds 0, 1", "1.50 ± 0.71", "5.00 ± 0.05", "method. name", "sid, step 200",
        "Critic loss", "Terms of the gradient: matching",
    ):  # fmt: skip
        assert words in text, words
    assert "alpha" not in text  # the same in all
    assert "http" not in page.read_text()
    held = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [group["figures"]["fid"]["mean"] for group in held["groups"]] == [1.5, 5.0]
    assert ask("compare", *map(str, runs), "--out", str(tmp_path / "out"))[0] == 0  # its own are replaced
    page.write_text("mine")
    assert ask("compare", *map(str, runs), "--out", str(tmp_path / "out"))[0] == 2
    assert page.read_text() == "mine"


def test_many_settings_that_differ_stand_below_the_figures_and_do_not_hide_the_pictures(runs, tmp_path, ask):
    many = "".join(f"key_{n}: {{n}}\n" for n in range(20))
    for number, run in enumerate(runs[1:]):  # the second is no longer the first's other seed
        config = run / "config.yaml"
        config.write_text(config.read_text() + many.replace("{n}", str(number)))
    code, out, _ = ask("compare", *map(str, runs), "--out", str(tmp_path / "out"))
    lines = out.splitlines()
    assert (code, max(map(len, lines)) < 120) == (0, True)
    assert [line.split()[0] for line in lines[1:4]] == ["sid_seed=0", "sid_seed=1", "<b>dmd2"]
    assert [line.split() for line in lines if line.startswith("key_9 ")] == [["key_9", "-", "0", "1"]]
    assert "5 more settings differ; --out or --json has them all" in lines
    text = parsed_page(tmp_path / "out" / "index.html")
    assert text.index("Samples of the same seeds") < text.index("Settings that differ") < text.index("key_ 19")


def parsed_page(file):
    class Text(HTMLParser):
        def __init__(self):
            super().__init__()
            self.parts = []

        def handle_data(self, data):
            self.parts.append(data)

    reader = Text()
    reader.feed(file.read_text())
    return " ".join(" ".join(reader.parts).split())


def test_what_is_no_run_or_one_alone_is_refused(runs, tmp_path):
    for given in (runs[:1], [runs[0], runs[0]]):
        with pytest.raises(ConfigError, match="two run folders or more"):
            compared(given)
    with pytest.raises(CheckpointError, match="is no run folder"):
        compared([runs[0], tmp_path])


def test_the_best_is_bold_as_far_as_the_page_shows_it():
    one, two, three = (Spread(mean, 1, None, None) for mean in (1.001, 1.004, 2.0))
    assert best("fid", [one, two, three, None]) == {0, 1}
    assert best("recall", [one, two, three]) == {2}
    near = Spread(1.2, 2, 0.3, None)
    assert best("fid", [Spread(1.0, 2, 0.25, None), near, three]) == {0, 1}  # no further than its own spread
    assert best("fid", [Spread(1.0, 2, 0.1, None), near, three]) == {0}
    assert best("fid", [one, two]) == best("nobody", [one, three]) == set()


def test_names_of_groups():
    assert name_of(["lr=1e-4,seed=10", "lr=1e-4,seed=11"]) == "lr=1e-4"
    assert unlike(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]
    assert _breakable("a.b_c<") == "a.<wbr>b_<wbr>c&lt;"


def test_two_runs_of_one_seed_tell_no_spread(runs, tmp_path):
    copy = made(tmp_path, "copy", "sid", 1, 2.0)
    with pytest.raises(ConfigError, match="have one seed and the same settings"):
        compared([*runs, copy])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.yaml", "a: [", "config.yaml' is damaged"),
        ("evaluation.json", "x", "evaluation.json' is damaged"),
        ("evaluation.json", "[]", "evaluation.json' is damaged"),
        ("metrics.jsonl", '{"step": 1}\n{"broken\n{"step": 3}\n', "line 2 of"),
    ],
)
def test_a_damaged_record_is_told(runs, name, text, sentence):
    (runs[1] / name).write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        compared(runs)


def test_a_last_line_that_a_kill_cut_is_no_damage(runs):
    with (runs[1] / "metrics.jsonl").open("a") as log:
        log.write('{"step": 300, "ti')
    assert len(compared(runs).runs) == 3


def test_a_comparison_of_other_runs_is_kept_and_one_with_more_takes_its_place(runs, tmp_path, ask):
    out = tmp_path / "out"
    write_comparison(runs[:2], out)
    before = (out / "index.html").read_bytes()
    code, told, err = ask("compare", str(runs[0]), str(runs[2]), "--out", str(out))
    assert (code, told) == (2, "")  # before the table
    assert "holds a comparison of other runs" in err
    assert (out / "index.html").read_bytes() == before
    write_comparison(runs, out)
    assert (out / "index.html").read_bytes() != before
