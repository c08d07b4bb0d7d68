"""Which adapters to train (MemControl, 2405.19458): layers on or off, judged by FID and by the share of no copies.

    python scripts/choose_adapters.py emoji/one_step student.lora.rank=8 critic.lora.rank=8 \\
        student.regression.muon=null evaluation.metrics=[fid,neighbours] --candidates to_q,to_k,to_v,to_out.0 \\
        --trials 12 --out runs/adapters

Every choice is a run of `diffdistill distill` in a folder of --out. Given again, the same command goes on: finished
choices are read, one that was cut short is resumed. Needs `pip install 'diffdistill[search]'`.
"""

import argparse
from pathlib import Path

from diffdistill.cli.choosing import Search, search_adapters
from diffdistill.errors import DiffDistillError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", metavar="CONFIG", help="of distill, for a text-to-image teacher")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[])
    parser.add_argument("--candidates", required=True, help="ends of the names of layers, between commas")
    parser.add_argument("--figures", default="fid,neighbours", help="of the evaluation, between commas")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    candidates, figures = (tuple(name.strip() for name in text.split(",")) for text in (args.candidates, args.figures))
    search = Search(args.recipe, tuple(args.overrides), candidates, figures, args.out)
    try:
        found = search_adapters(search, args.trials, args.seed)
    except DiffDistillError as error:
        print(f"error: {error}")
        return error.exit_code
    print("\n" + "  ".join(("choices that none beats", *search.figures)))
    for chosen, values in found:
        print("  ".join(("+".join(chosen), *(f"{value:.4g}" for value in values))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
