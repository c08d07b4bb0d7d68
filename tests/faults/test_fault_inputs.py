"""Inputs by a fuzzer: settings, overrides, prompt files, flags, data. A sentence and an exit code, never a traceback.

The verbs themselves are put aside: what is tested is what stands before them.
"""

import contextlib
import io
import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from counts import counting, tries
from harness import BUG

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

CODES = (0, 2, 3, 4, 6)
RIGHT = "exit 0, or 2 to 6 with sentences; no traceback, nothing unexpected"
VERBS = {"train": "Train", "distill": "Distill", "align": "Align"}


@pytest.fixture
def aside(monkeypatch):
    """The functions of all verbs do nothing; what stands before them is real."""
    from diffdistill.cli.front import verbs

    fakes: dict[str, types.ModuleType] = {}  # several verbs may have one module
    for verb in verbs().values():
        module, _, name = verb.target.partition(":")
        if verb.name != "config":
            fake = fakes.setdefault(module, types.ModuleType(module))
            setattr(fake, name, lambda _given: 0)
            monkeypatch.setitem(sys.modules, module, fake)


def _ask(words: list[str]) -> str | None:
    """What is wrong with how a command line was answered; None if nothing is."""
    from diffdistill.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as error:  # --help and --version
        code = 0 if error.code in (0, None) else 99
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    said = err.getvalue()
    if code not in CODES or BUG.search(said):
        return f"exit {code}: {said[:300]}"
    lines = [line for line in said.splitlines() if line]
    if code and not (lines and all(line.startswith("diffdistill: error: ") for line in lines)):
        return f"exit {code}, and no sentence: {said[:300]!r}"
    return None


def _fuzz(name: str, full: int, ci: int, strategy: st.SearchStrategy, attempt: Callable[[object], str | None]) -> None:
    """So many inputs of a strategy, the same ones every time; each is judged, none stops the others."""
    with counting("inputs", name, RIGHT) as counts:

        @settings(
            max_examples=tries(full, ci), derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), print_blob=False,
        )  # fmt: skip
        @given(strategy)
        def run(value: object) -> None:
            counts.judge(attempt(value), "answered", repr(value)[:300])

        run()


# ---- settings


def _keys() -> dict[str, list[str]]:
    from diffdistill.cli.config_tool import keys
    from diffdistill.cli.front import verbs
    from diffdistill.registry import named

    rows = {name: [line for line in keys(named(str(verbs()[name].settings))) if line[0] != "#"] for name in VERBS}
    return {name: [line.partition(":")[0] for line in lines] for name, lines in rows.items()}


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, -1, 10**400, 1e308, -0.0, 2**31, 2**63]),
)  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "auto", "latest", "no", "1e-4", "12:30", "0x1f", "~", ".nan", "!!python/name:os.system", "&a [*a]", "*a",
        "{", "[", "'", '"', "\x00", "\ud800", "../..", "builtin:", "builtin:../x", "alpha:x", "a.py:B", "%TAG", "---",
        "? a", "- - -", "|", ">", "@", "`", "\u2028", "\ufeff", "a" * 5000, "null", "9" * 5000,
    ]),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def _flow(value: object) -> str:
    """As one writes it after `key=`; JSON is YAML."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except ValueError:
        return str(value)


@pytest.mark.usefixtures("aside")
def test_overrides(shop):
    known = _keys()

    @st.composite
    def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
        verb = draw(st.sampled_from(sorted(VERBS)))
        odd = st.one_of(st.text(max_size=10), st.sampled_from(["a..b", ".", "", "=", "-x"]))
        key = st.one_of(st.sampled_from(known[verb]), odd)
        pair = st.tuples(key, VALUES).map(lambda pair: f"{pair[0]}={_flow(pair[1])}")
        return verb, draw(st.lists(st.one_of(pair, WORDS), min_size=1, max_size=4))

    def attempt(value: tuple[str, list[str]]) -> str | None:
        verb, overrides = value
        config = {"train": "fashion_mnist/teacher", "distill": "fashion_mnist/dmd2", "align": "align/mapo_sd15"}[verb]
        return _ask([verb, config, *overrides])

    _fuzz("overrides", 400, 60, lines(), attempt)


@pytest.mark.usefixtures("aside")
def test_config_files(shop):
    """Settings of the schema with any values; text that is nearly YAML; bytes."""
    known, file = _keys(), shop.folder("fuzz-configs") / "config.yaml"

    @st.composite
    def written(draw: st.DrawFn) -> tuple[str, bytes]:
        import yaml

        verb = draw(st.sampled_from(sorted(VERBS)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            return verb, draw(st.binary(max_size=200))
        if kind == 1:
            pieces = st.one_of(WORDS, st.sampled_from([": ", "\n", "  ", "- ", "#"]))
            return verb, "".join(draw(st.lists(pieces, max_size=20))).encode("utf-8", "surrogatepass")
        tree: dict[str, object] = {}
        for key in draw(st.lists(st.sampled_from(known[verb]), max_size=6)):
            section, value = tree, draw(VALUES)
            *above, last = key.split(".")
            for name in above:
                inner = section.setdefault(name, {})
                section = inner if isinstance(inner, dict) else {}
            section[last] = value
        base = draw(st.sampled_from([None, "fashion_mnist/dmd2", "config.yaml", "nowhere", 3]))
        text = yaml.safe_dump(tree | ({} if base is None else {"base": base}), allow_unicode=True)
        data = text.encode("utf-8", "surrogatepass")
        if kind == 3 and data:
            random_ = random.Random(len(data))
            start, end = random_.randrange(len(data)), random_.randrange(len(data))
            data = data[:start] + draw(st.binary(max_size=3)) + data[end:]
        return verb, data

    def attempt(value: tuple[str, bytes]) -> str | None:
        file.write_bytes(value[1])
        return _ask([value[0], str(file)])

    _fuzz("config files", 400, 60, written(), attempt)


# ---- flags


@pytest.mark.usefixtures("aside")
def test_flags_of_every_verb(shop):
    from diffdistill.cli.front import parser_of, verbs

    flags = {
        # --debug shows tracebacks, as it should.
        name: sorted({flag for action in parser_of(verb)._actions for flag in action.option_strings} - {"--debug"})
        for name, verb in verbs().items()
    }

    @st.composite
    def lines(draw: st.DrawFn) -> list[str]:
        verb = draw(st.sampled_from([*sorted(flags), "", "smple", "--"]))
        value = st.one_of(WORDS, NUMBERS.map(str), st.sampled_from(["1,2", "0,0", "1-3", ",", "-1", "1e3", "cuda:99"]))
        flag = st.sampled_from(flags.get(verb) or ["--seed"])
        one = st.one_of(
            st.tuples(flag, value).map(list), st.tuples(flag, value).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
            flag.map(lambda name: [name]), value.map(lambda word: [word]),
        )  # fmt: skip
        return [verb, *(word for words in draw(st.lists(one, max_size=6)) for word in words)]

    _fuzz("flags of every verb", 400, 60, lines(), _ask)


# ---- files of texts


TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from([
        "", " ", "a cow", "\x00", "\ufeffa", "a\r\nb\rc", "\ud800", "\u202eabc", "👩‍👩‍👧", "x" * 100_000, '"', "a,b",
        "\u2028",
    ]),
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "utf-7")


def test_prompt_files(shop):
    from guarded import refused_or

    from diffdistill.data.prompts import read_prompts

    home = shop.folder("fuzz-prompts")

    @st.composite
    def files(draw: st.DrawFn) -> tuple[str, bytes]:
        suffix = draw(st.sampled_from(["", ".txt", ".csv", ".jsonl", ".CSV", ".json", ".pdf"]))
        kind = draw(st.integers(0, 2))
        if kind == 0:
            return suffix, draw(st.binary(max_size=300))
        rows = draw(st.lists(TEXTS, max_size=6))
        if kind == 1:
            names = st.sampled_from(["prompt", "text", "negative_prompt", "seed", "x", ""])
            entries = draw(st.lists(st.dictionaries(names, VALUES, max_size=4), max_size=5))
            text = "\n".join(json.dumps(entry) for entry in entries)
        else:
            heads = ["", "prompt\n", "prompt,negative_prompt,seed\n", 'text,"a\n', "prompt,prompt\n"]
            text = draw(st.sampled_from(heads)) + draw(st.sampled_from(["\n", "\r\n", "\r", ","])).join(rows)
        return suffix, text.encode(draw(st.sampled_from(ENCODINGS)), "replace")

    def attempt(value: tuple[str, bytes]) -> str | None:
        file = home / f"prompts{value[0]}"
        file.write_bytes(value[1])

        def read() -> str:
            found = read_prompts(file)
            assert found, "no prompt"
            assert all(prompt.text.strip() for prompt in found), "an empty prompt"
            "".join(prompt.text for prompt in found).encode()
            return "read"

        return refused_or(read)[0]

    _fuzz("prompt files", 300, 40, files(), attempt)


def test_folders_of_data(shop):
    """Captions and labels beside images, in every form, with any words in them."""
    from guarded import refused_or

    from diffdistill.data import load_images

    home = shop.folder("fuzz-data")
    _pictures(home)

    @st.composite
    def listings(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(["metadata.jsonl", "metadata.csv", "dataset.json"]))
        files = st.one_of(st.sampled_from(["0.png", "1.png", "../0.png", "/etc/passwd", "nowhere.png", ""]), VALUES)
        keys = st.sampled_from(["file_name", "text", "label", "win", "lose"])
        rows = draw(st.lists(st.dictionaries(keys, st.one_of(files, VALUES), max_size=4), max_size=4))
        if name == "dataset.json":
            listed = draw(st.one_of(VALUES, st.lists(st.tuples(files, VALUES), max_size=3)))
            text = json.dumps({"labels": listed}) if draw(st.booleans()) else json.dumps(listed)
        elif name.endswith("csv"):
            text = "file_name,text,label\n" + "\n".join(",".join(_flow(v) for v in row.values()) for row in rows)
        else:
            text = "\n".join(json.dumps(row) for row in rows)
        return name, text.encode(draw(st.sampled_from(ENCODINGS)), "replace")

    def attempt(value: tuple[str, bytes]) -> str | None:
        file = home / value[0]
        file.write_bytes(value[1])
        problem, _ = refused_or(lambda: f"{len(load_images(str(home)))} images")
        file.unlink()
        return problem

    _fuzz("listings of image folders", 300, 40, listings(), attempt)


def _pictures(home: Path) -> None:
    import numpy as np
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(home / f"{i}.png")
