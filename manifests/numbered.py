"""The order of files that are named by numbers, `00000.parquet` to `99999.parquet` and then `100000.parquet`: text has it only while all are of one width."""

from pathlib import Path


def numbered(folder: Path, ending: str) -> list[Path]:
    """The files of `folder` with this ending (".tar"), by their numbers; those without one follow by name. None where there is no such folder."""
    return sorted(folder.glob(f"*{ending}"), key=lambda file: by_number(file.name))


def by_number(name: str) -> tuple[bool, int, str]:
    """The key that sorts names by the number before their first dot."""
    number = name.partition(".")[0]
    is_other = not (number.isascii() and number.isdigit())
    return is_other, 0 if is_other else int(number), name
