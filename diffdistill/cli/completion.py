"""`diffdistill completion bash|zsh|fish`: a script for the shell, made from the parsers and the settings themselves.

A script holds words alone: completing starts no Python. It is made again after an update.
"""

from argparse import Namespace

from diffdistill.cli import recipes
from diffdistill.cli.config_tool import keys
from diffdistill.cli.front import parser_of, verbs
from diffdistill.cli.parser import Parser, Verb
from diffdistill.registry import named

BASH = r"""# diffdistill completion for bash; eval "$(diffdistill completion bash)"
_diffdistill() {
  local word="${COMP_WORDS[COMP_CWORD]}" verb="" words="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${COMP_WORDS[i]}" in -*) ;; *) verb="${COMP_WORDS[i]}"; break ;; esac
  done
  case "$verb" in
    "") words="@VERBS@" ;;
@CASES@
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  return 0
}
complete -o default -F _diffdistill diffdistill
"""
ZSH = r"""#compdef diffdistill
# diffdistill completion for zsh; eval "$(diffdistill completion zsh)"
_diffdistill() {
  local verb="" choices="" i
  for ((i = 2; i < CURRENT; i++)); do
    if [[ "${words[i]}" != -* ]]; then verb="${words[i]}"; break; fi
  done
  case "$verb" in
    "") choices="@VERBS@" ;;
@CASES@
  esac
  local -a settings others
  settings=(${(M)${=choices}:#*=})
  others=(${${=choices}:#*=})
  compadd -S "" -a settings
  compadd -a others
  _files
}
compdef _diffdistill diffdistill
"""
FISH = "# diffdistill completion for fish: ~/.config/fish/completions/diffdistill.fish\n"


def words_of(verb: Verb) -> list[str]:
    """What may follow a verb: its flags, choices of its arguments, and, where it takes a CONFIG, recipes and keys."""
    parser = parser_of(verb)
    flags, choices = _of_parser(parser)
    positional = [action.metavar for action in parser._actions if not action.option_strings]
    recipe = recipes.names() if "CONFIG" in positional else []
    return [*choices, *recipe, *(f"{key}=" for key in keys_of(verb)), *flags]


def _of_parser(parser: Parser) -> tuple[list[str], list[str]]:
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    choices = [str(c) for action in parser._actions if not action.option_strings for c in action.choices or ()]
    return flags, choices


def keys_of(verb: Verb) -> list[str]:
    """Dotted keys of a verb's settings; a sweep's are those of distill."""
    settings = verbs()["distill"].settings if verb.name == "sweep" else verb.settings
    if settings is None:
        return []
    lines = (line for line in keys(named(settings)) if not line.startswith("# "))
    return list(dict.fromkeys(line.partition(":")[0] for line in lines))


def script(shell: str) -> str:
    """The whole script for a shell."""
    table = {name: words_of(verb) for name, verb in verbs().items()}
    if shell == "fish":
        return FISH + "\n".join(_fish(table)) + "\n"
    name = "words" if shell == "bash" else "choices"
    cases = "\n".join(f'    {verb}) {name}="{" ".join(words)}" ;;' for verb, words in table.items())
    body = BASH if shell == "bash" else ZSH
    return body.replace("@VERBS@", " ".join([*table, "--help", "--version"])).replace("@CASES@", cases)


def _fish(table: dict[str, list[str]]) -> list[str]:
    first = [
        f"complete -c diffdistill -n __fish_use_subcommand -f -a {name} -d '{_plain(verbs()[name].summary)}'"
        for name in table
    ]
    rest = [
        f"complete -c diffdistill -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'"
        for name, words in table.items()
    ]
    return first + rest


def _plain(text: str) -> str:
    return text.replace("'", "")


def run(args: Namespace) -> int:
    print(script(args.shell), end="")
    return 0
