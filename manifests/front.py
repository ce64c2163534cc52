"""`keepset`: lists the three commands and forwards to them. What the three share on the terminal: errors, exit codes, JSON."""

import datetime
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from manifests.errors import STOPPED, WRONG_USE, Refusal

ROOMS = {
    "curate": "decide which samples to keep, and write them as shards",
    "pretrain": "prove by pre-training and transfer that they were enough",
    "manifests": "read the record: why each sample was kept or dropped",
}


class Verbs(click.Group):
    """A command with verbs that turns a `Refusal` into its line and exit code; verbs are listed in the order they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the road, not of the alphabet."""
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; errors a user can cause become one line on stderr and the exit code of their slug."""
        kwargs["standalone_mode"] = False
        name = kwargs.get("prog_name") or Path(sys.argv[0]).name
        warnings.formatwarning = _one_line  # type: ignore[assignment]
        try:
            code = super().main(*args, **kwargs)
        except Refusal as refusal:
            _refuse(refusal, f"{name}: ")
        except click.exceptions.Abort:
            click.echo(f"{name}: stopped; run the same command again to go on", err=True)
            sys.exit(STOPPED)
        except KeyboardInterrupt:
            click.echo(f"{name}: stopped; run the same command again to go on", err=True)
            sys.exit(STOPPED)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(WRONG_USE)
        except click.ClickException as error:
            path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
            said = error.format_message().replace(". Did", "; did").rstrip(".?")
            _refuse(Refusal("bad-command", path, said, cure=f"See `{path} --help`"))
        except BrokenPipeError:
            sys.exit(0)
        sys.exit(code if isinstance(code, int) else 0)


def _one_line(message: Warning | str, category: type[Warning], *place: Any) -> str:
    """What a method warns of, without the line of code that it came from."""
    return f"warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


def _refuse(refusal: Refusal, prefix: str = "") -> NoReturn:
    click.echo(f"{prefix}{refusal}", err=True)
    sys.exit(refusal.exit_code)


def emit(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print `value` as one JSON object, or as `text(value)`."""
    click.echo(json.dumps(value, ensure_ascii=False, default=_spelled) if as_json else text(value))


def _spelled(value: Any) -> str:
    """What JSON has no kind for, as text: bytes as hex digits, times as ISO 8601, anything else as Python prints it."""
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(arguments: tuple[str, ...]) -> None:
    """Forward to a room."""
    if arguments and arguments[0] in ROOMS:
        importlib.import_module(f"{arguments[0]}.cli").main(list(arguments[1:]), prog_name=f"keepset {arguments[0]}")
        return
    if arguments and arguments[0] not in ("--help", "-h"):
        _refuse(Refusal("bad-command", "keepset", f"there is no command {arguments[0]!r}", f"there are {', '.join(ROOMS)}"))
    click.echo("keepset decides which samples of a pool to keep, says why for every one, and proves they were enough.\n")
    for name, sentence in ROOMS.items():
        click.echo(f"  {name:<10} {sentence}")
    click.echo("\nStart with:  curate audit FOLDER_OF_IMAGES      Each command and verb has --help.")
