"""`diffdistill completion`."""

from diffdistill.cli.parser import Parser, Verb

EXAMPLE = """
bash:  eval "$(diffdistill completion bash)"                 in ~/.bashrc
zsh:   eval "$(diffdistill completion zsh)"                  in ~/.zshrc, after compinit
fish:  diffdistill completion fish > ~/.config/fish/completions/diffdistill.fish
"""


def add_flags(parser: Parser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


VERB = Verb(
    "completion", "words that a shell completes: verbs, flags, recipes, settings", "diffdistill.cli.completion:run",
    add_flags, 130,
)  # fmt: skip
