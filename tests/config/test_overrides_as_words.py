"""An override is a word of a command line: no comments, and text where text is meant; and what is refused."""

from pathlib import Path

import pytest

from diffdistill.config import load_config
from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Train
from diffdistill.errors import ConfigError


def train(*overrides):
    return load_config(Train, "fashion_mnist/teacher", ["output_dir=o", *overrides]).config


@pytest.mark.parametrize(
    "text", ["set #2", "#2", "a #b", "2024", "1e3", "0x10", "true #", "a#b", "true", "no", "1.50", "2024-01-01", "~x"]
)
def test_text_is_what_was_written(text):
    assert train(f"data.path={text}").data.path == text
    assert train(f"output_dir={text}").output_dir == text  # of "~x" there is nobody


def test_it_reads_back_from_the_resolved_file(tmp_path):
    resolved = load_config(Train, "fashion_mnist/teacher", ["output_dir=2024", "data.path=set #2"])
    (tmp_path / "again.yaml").write_text(resolved.text_yaml, encoding="utf-8")
    assert load_config(Train, tmp_path / "again.yaml").config == resolved.config


def test_null_numbers_and_quotes_are_still_read():
    assert train("data.prompts=null").data.prompts is None
    assert train("seed=7").seed == 7
    assert train("data.path='7'").data.path == "7"


def test_home_is_home_in_output_dir():
    assert train("output_dir=~/x").output_dir == str(Path("~/x").expanduser())


def refused(model, config, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(model, config, ["output_dir=o", *overrides])
    return str(caught.value)


def test_a_part_is_at_most_the_whole():
    words = "micro_batch_size is 65 and train_batch_size 64; a part is at most the whole"
    assert words in refused(Distill, "fashion_mnist/dmd2", "train_batch_size=64", "micro_batch_size=65")
    words = "micro_batch_size is 3 and train_batch_size 2"
    assert words in refused(Align, "align/mapo_sdxl", "train_batch_size=2", "micro_batch_size=3")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("network.block_out_channels=[]", "a list of at least 1 items"),
        ("network.block_out_channels=[8,12]", "has 12, which is no multiple of network.norm_num_groups=8"),
        ("network.attention_levels=[3]", "has 3 and there are 3 resolutions; use -3 to 2"),
        ("network.attention_head_dim=256", "a level with attention has 96 channels"),
        ("num_threads=100000", "a number <= 1024"),
        ("train_batch_size=1000000000000000000000000000000", "a number <= 1e+09"),
    ],
)
def test_what_cannot_be_built_or_counted_is_refused(override, words):
    assert words in refused(Train, "fashion_mnist/teacher", override)


def test_lists_of_names_say_that_a_file_may_be_named():
    assert refused(Distill, "fashion_mnist/dmd2", "method.name=foo").endswith("or FILE.py:NAME")
    assert refused(Distill, "fashion_mnist/dmd2", "method.name=foo").startswith("override 'method.name=foo'")
    assert refused(Distill, "fashion_mnist/dmd2", "student.optimizer.name=foo").endswith("or FILE.py:NAME")


@pytest.mark.parametrize(
    "word", ["[old] set", "a: b", "@home", "%1", "&x", "*x", "!x", "- x", "-", "|", "'a' and 'b'"]
)
def test_text_that_yaml_reads_otherwise_or_not_at_all_is_text(word: str):
    config = load_config(Train, "fashion_mnist/teacher", [f"data.path={word}"]).config
    assert config.data.path == word


def test_a_word_that_is_no_yaml_is_refused_where_the_setting_is_no_text():
    with pytest.raises(ConfigError, match="override 'seed=@1': not valid YAML: found character '@'"):
        load_config(Train, "fashion_mnist/teacher", ["seed=@1"])


def test_a_key_below_a_text_is_refused():
    with pytest.raises(ConfigError, match=r"data\.path"):
        load_config(Train, "fashion_mnist/teacher", ["data.path=set", "data.path.x=1"])
