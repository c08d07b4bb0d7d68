"""The list of recipes, and the words that a shell completes."""

import shutil
import subprocess

import pytest

from diffdistill.cli import recipes
from diffdistill.cli.completion import script
from diffdistill.cli.front import checked_settings, verbs


def test_every_recipe_has_a_line_with_its_verb_and_its_length():
    rows = {row.name: row for row in recipes.recipes()}
    assert "fashion_mnist/_base" not in rows
    assert all(row.line for row in rows.values())
    for name in (
        "fashion_mnist/teacher",
        "fashion_mnist/dmd2",
        "align/mapo_sd15",
        "emoji/mapo",
        "sdxl/dmd2_4step_lora",
    ):
        row = rows[name]
        config = checked_settings(verbs()[row.verb], name).config
        assert row.size == f"{config.max_train_steps:,} x {config.train_batch_size}"
    assert {verb: verbs()[verb].settings for verb in recipes.BATCH}  # names of verbs
    assert rows["cifar10/sid"].cost == "800 M images"


def test_the_list_is_a_line_each_in_the_terminal_s_width(ask, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = ask("config", "list")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 1 + len(recipes.names()))
    assert max(map(len, lines)) <= 100
    assert next(line for line in lines if line.startswith("cifar10/sid ")).endswith(" (800 M images)")
    aligning = ask("config", "list", "align")[1].splitlines()[1:]
    assert {line.split()[1] for line in aligning} == {"align"}
    assert ask("config", "list", "sample")[0] == ask("config", "show")[0] == 2


def test_a_default_batch_is_that_of_the_settings():
    for verb, batch in recipes.BATCH.items():
        module, _, name = verbs()[verb].settings.partition(":")
        kind = getattr(__import__(module, fromlist=[name]), name)
        assert kind.model_fields["train_batch_size"].default == batch


ASK = {
    "bash": """
complete() { :; }; compopt() { :; }
eval "$(cat)"
ask() { COMP_WORDS=(diffdistill "$@"); COMP_CWORD=$#; _diffdistill; echo "${COMPREPLY[*]}"; }
""",
    "zsh": """
compdef() { :; }; _files() { :; }
compadd() { found+=(${(M)${(P)@[-1]}:#${words[-1]}*}) }
eval "$(cat)"
ask() { words=(diffdistill "$@"); CURRENT=$#words; found=(); _diffdistill; echo "$found"; }
""",
    "fish": """
source -
function ask; echo (complete -C "diffdistill $argv" | string replace -r '\t.*' ''); end
""",
}
ASKED = "ask sw; ask distill fashion_mnist/dm; ask --quiet distill x student.st; ask sample m --num; ask config d"


@pytest.mark.parametrize("shell", ASK)
def test_a_shell_completes_verbs_recipes_settings_flags_and_choices(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    words = [shell, "-c", ASK[shell] + ASKED]
    done = subprocess.run(words, input=script(shell), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "sweep",
        "fashion_mnist/dmd2 fashion_mnist/dmd2_4step fashion_mnist/dmd2_stage2",
        "student.steps=",
        "--num-images",
        "diff",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_verb_and_has_no_word_that_a_shell_would_expand(shell):
    text = script(shell)
    for name in verbs():
        assert f" {name}" in text
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True).returncode == 0
    tables = [line for line in text.splitlines() if line.lstrip().startswith(("distill)", "complete -c"))]
    assert tables
    assert not any(sign in line for line in tables for sign in ("`", "$", "*"))
