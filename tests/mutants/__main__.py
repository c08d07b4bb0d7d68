"""Break the package, one line at a time, and see whether the tests notice.

    python -m tests.mutants                                 all mutants: `make mutants`
    python -m tests.mutants --only matching --only losses   those whose file or name holds one of the words
    python -m tests.mutants --changed                       those in files that differ from the last commit
    python -m tests.mutants --tree ../other                 another state of the package, with its tests

Which tests run which line is recorded first and kept in `build/mutants/` until a test file or a file that it runs
changes; every mutant then runs only those that run its line, fastest first, until one fails. An interrupted run goes
on where it stopped. Exit code 1: a mutant survives that `survivors.toml` does not name, or does not apply.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import deque
from pathlib import Path
from typing import Any

from .catalogue import LISTS, Mutant, catalogue
from .examine import Examination, Knowledge, Result, as_json, examine, result_of
from .plugins import Mapper, digests, fits
from .tables import read_results, survivors, table
from .workshop import Bench, Run, copy_tree, key_of, preload, prepare_environment

ROOT = Path(__file__).resolve().parents[2]
KNOWN = Path(__file__).parent / "survivors.toml"
FIRST = ("pytest", "torch", "numpy", "scipy.linalg", "PIL.Image", "pydantic", "yaml", "safetensors.torch", "diffusers")


def main() -> int:
    options = arguments().parse_args()
    prepare_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was forked ends too
    root = options.tree.resolve()
    cache = ROOT / "build" / "mutants" / f"{root.name}-{Path(sys.prefix).name}"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"results-{key_of(root)}.jsonl"
    mutants = chosen(options, root)
    if not mutants:
        print("no mutant is wanted", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [copy_tree(root, Path(scratch) / f"tree{number}") for number in range(options.jobs)]
        preload(FIRST)
        knowledge = known_tests(cache, trees, options.tests)
        done = earlier(kept) if not options.again else {}
        knowledge.most = options.most
        knowledge.before = {
            f"{r.file}: {r.name}": r.by for other in cache.glob("results-*") for r in read_results(other)
        }
        results = run_all(mutants, knowledge, trees, kept, done, root, not options.quick)
    return tell(options, results)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="WORD", action="append", default=[], help="part of a file or a name")
    parser.add_argument("--changed", nargs="?", const="HEAD", metavar="COMMIT", help="files that differ from COMMIT")
    parser.add_argument("--tests", metavar="WORD", action="append", default=[], help="part of a test file (all files)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table and the survivors, in Markdown")
    parser.add_argument("--before", type=Path, metavar="FILE", help="results of another state, a column of the table")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the results, a JSON object a line")
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="FOLDER", help="the package to break")
    parser.add_argument("--quick", action="store_true", help="survivors are not run once more from the start")
    parser.add_argument(
        "--most", type=float, default=float("inf"), metavar="SECONDS", help="of tests a mutant, the fastest (all)"
    )
    parser.add_argument("--list", type=Path, default=LISTS, metavar="FOLDER", help="the mutants, for another --tree")
    parser.add_argument("--again", action="store_true", help="run also what has been run on this tree")
    return parser


def chosen(options: argparse.Namespace, root: Path) -> list[Mutant]:
    mutants = catalogue(options.list)
    if options.only:
        mutants = [m for m in mutants if any(word in m.title for word in options.only)]
    if options.changed:
        words = ["git", "-C", str(root), "diff", "--name-only", options.changed]
        files = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
        mutants = [m for m in mutants if m.file in files]
    return mutants


def known_tests(cache: Path, trees: list[Path], words: list[str]) -> Knowledge:
    """The tests with their lines; test files that have not been recorded for this state of the tree are run first."""
    found = (str(p.relative_to(trees[0])) for p in (trees[0] / "tests").rglob("test_*.py"))
    # That one reads the list of mutants, and would notice every one of them.
    names = sorted(name for name in found if not name.endswith("test_mutants.py"))
    names = [name for name in names if not words or any(word in name for word in words)]
    files = {name: cache / f"{name.replace('/', '.')}.json" for name in names}
    missing = [name for name, file in files.items() if not file.exists() or not fits(read(file), trees[0])]
    if missing:
        print(f"recording which test runs which line, {len(missing)} files of {len(names)} ...", flush=True)
        began = time.monotonic()
        for name in missing:
            files[name].unlink(missing_ok=True)
        runs = []
        for number, tree in enumerate(trees):
            share = missing[number :: len(trees)]
            runs.append(Run(tree, ["--maxfail=0", *share], Mapper(tree, cache), dict, limit=7200))
        answers = [run.wait() for run in runs]
        if any(answer["code"] not in (0, 1, 5) for answer in answers):
            for tree in trees:
                shutil.copyfile(f"{tree}.log", cache / f"{tree.name}.log")
            raise SystemExit(f"the tests could not be recorded; see {cache}/*.log")
        for name in missing:
            if not files[name].exists():  # none of its tests is of the default suite
                files[name].write_text(json.dumps({"tests": {}, "modules": [], "digests": digests(trees[0], [name])}))
        print(f"recorded in {time.monotonic() - began:.0f} s", flush=True)
    held = [read(file) for file in files.values()]
    tests = {name: test for one in held for name, test in one["tests"].items()}
    for name, test in tests.items():
        if not test["passed"]:
            print(f"left out, for it fails without any mutant: {name}")
    preload(sorted({name for one in held for name in one["modules"]}))
    return Knowledge(tests)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def earlier(file: Path) -> dict[tuple[str, str, str], Result]:
    """What has been killed on this tree; what survived may have been run with other tests (`--tests`)."""
    results = read_results(file) if file.exists() else []
    return {(r.file, r.old, r.new): r for r in results if r.dead}


def run_all(
    mutants: list[Mutant],
    knowledge: Knowledge,
    trees: list[Path],
    file: Path,
    done: dict[tuple[str, str, str], Result],
    root: Path,
    confirm: bool,
) -> list[Result]:
    """All results, in the order of the list; each is written to `file` as soon as it is there."""
    results: dict[str, Result] = {}
    waiting: deque[Mutant] = deque()
    for mutant in mutants:
        if (fault := mutant.fault(root)) is not None:
            results[mutant.title] = result_of(mutant, "does not apply", by=fault)
        elif mutant.needs and importlib.util.find_spec(mutant.needs) is None:
            results[mutant.title] = result_of(mutant, "not run", by=f"needs {mutant.needs}")
        elif (mutant.file, mutant.old, mutant.new) in done:
            results[mutant.title] = done[mutant.file, mutant.old, mutant.new]
        else:
            waiting.append(mutant)
    test_files = sorted({name.partition("::")[0] for name in knowledge.tests})
    benches = [Bench(tree, test_files) for tree in trees] if waiting else []
    busy: dict[int, tuple[Mutant, Examination]] = {}
    try:
        while waiting or busy:
            for number, bench in enumerate(benches):
                answer = None
                if number in busy:
                    mutant, examination = busy[number]
                    if (answer := bench.poll()) is None:
                        continue
                elif waiting and bench.ready():
                    mutant = waiting.popleft()
                    busy[number] = mutant, (examination := examine(mutant, knowledge, bench.tree, confirm))
                else:
                    continue
                try:
                    bench.ask(examination.send(answer))  # type: ignore[arg-type]
                except StopIteration as stop:
                    del busy[number]
                    results[mutant.title] = stop.value
                    with file.open("a") as stream:
                        stream.write(json.dumps(as_json(stop.value)) + "\n")
                    show(stop.value, len(waiting))
            time.sleep(0.01)
    finally:
        for bench in benches:
            bench.close()
    return [results[mutant.title] for mutant in mutants]


def show(result: Result, left: int) -> None:
    by = f"  <- {result.by}" if result.by else ""
    print(f"{result.state:>10} {result.seconds:6.1f} s  {result.file}: {result.name}{by}  ({left} left)", flush=True)


def tell(options: argparse.Namespace, results: list[Result]) -> int:
    reasons = tomllib.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    before = read_results(options.before) if options.before else []
    text = f"{table(results, before)}\nWhat survives:\n\n{survivors(results, reasons)}"
    if options.results:
        options.results.write_text("".join(json.dumps(as_json(r)) + "\n" for r in results))
    if options.table:
        options.table.write_text(text)
    print(f"\n{text}")
    bad = [r for r in results if r.state == "does not apply"]
    for r in bad:
        print(f"ERROR: {r.file}: {r.name}: {r.by}", file=sys.stderr)
    skipped = sum(r.state == "not run" for r in results)
    if skipped:
        print(f"{skipped} mutants were not run: this environment has no transformers.")
    new = [r for r in results if r.counts and not r.dead and f"{r.file}: {r.name}" not in reasons]
    return 1 if bad or new else 0


if __name__ == "__main__":
    sys.exit(main())
