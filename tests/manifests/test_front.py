"""What the commands share on the terminal."""

import warnings

import click
from click.testing import CliRunner

from manifests.front import Verbs


def test_a_warning_is_one_line_without_the_code_that_it_came_from(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards

    @click.group(cls=Verbs)
    def main() -> None:
        """A command."""

    @main.command()
    def verb() -> None:
        """Formats what a method would warn of."""
        click.echo(warnings.formatwarning("nothing is left", UserWarning, "deciding.py", 256, "stage.function(pool)"), nl=False)
        click.echo(warnings.formatwarning("divided", RuntimeWarning, "x.py", 1), nl=False)

    assert CliRunner().invoke(main, ["verb"]).output == "warning: nothing is left\nRuntimeWarning: divided\n"
