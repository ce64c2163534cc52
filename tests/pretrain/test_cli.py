import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from pretrain.cli import main
from tests.pretrain.pictures import digit_pngs, write_pool


def run(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, list(arguments))
    return found.exit_code, found.stdout, found.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    pictures, labels = digit_pngs(300)
    write_pool(root / "train", pictures[:200], labels[:200])
    write_pool(root / "test", pictures[200:], labels[200:])
    config = {
        "data": [str(root / "train")],
        "out": str(root / "out"),
        "objective": {"name": "cross_entropy"},
        "samples_seen": 640,
        "batch": 64,
        "resolution": 16,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config | {"device": "cpu", "threads": 1}))
    (root / "tasks.yaml").write_text(yaml.safe_dump([{"name": "digits", "train": str(root / "train"), "test": str(root / "test"), "probe": "knn"}]))
    return root


def test_train_then_transfer(folder):
    code, out, _ = run("train", str(folder / "config.yaml"), "--set", "optimizer.lr=0.05", "--json")
    assert code == 0 and json.loads(out) == {"checkpoint": str(folder / "out")}
    assert json.loads((folder / "out" / "config.json").read_text())["keepset"]["training"]["configuration"]["optimizer"]["lr"] == 0.05

    code, out, _ = run(
        "transfer", str(folder / "out"), str(folder / "tasks.yaml"), "--device", "cpu", "--out", str(folder / "scores.parquet"), "--json"
    )
    (row,) = json.loads(out)
    assert code == 0 and row["task"] == "digits" and {"mean", "interval", "chance", "pixels", "untrained", "chosen"} <= set(row)
    table = pq.read_table(folder / "scores.parquet")
    assert table.num_rows == 100 and sum(table["value"].to_pylist()) / 100 == pytest.approx(row["mean"])
    code, out, _ = run("transfer", "pixels:8", str(folder / "tasks.yaml"))
    assert code == 0 and out.splitlines()[0].split() == ["task", "score", "chance"] and "[" in out.splitlines()[1]


def test_refusals_are_one_line_and_an_exit_code(folder):
    for arguments, code, slug in (
        (("train", str(folder / "none.yaml")), 2, "no-such-file"),
        (("train", str(folder / "config.yaml"), "--set", "sed=1"), 2, "unknown-parameter"),
        (("transfer", "nowhere", str(folder / "tasks.yaml")), 2, "no-such-file"),
        (("transfer", "pixels:8", str(folder / "config.yaml")), 2, "bad-value"),
        (("objectives", "luck"), 2, "bad-value"),
        (("compare", str(folder / "none.yaml")), 2, "no-such-file"),
        (("judge", str(folder / "none.parquet"), "--plan", str(folder / "none.yaml")), 2, "no-such-file"),
    ):
        found, out, err = run(*arguments)
        assert found == code and out == "" and err.startswith("pretrain: ") and err.count("\n") == 1 and f"[{slug}]" in err, (arguments, err)


def test_lists_and_pages():
    assert [line.split()[0] for line in run("objectives")[1].splitlines()] == ["look", "cross_entropy", "simclr"]
    assert [line.split()[0] for line in run("tasks")[1].splitlines()] == ["knn", "linear"]
    code, out, _ = run("objectives", "look")
    assert code == 0 and out.startswith("look\n  k: int | None = None\n") and "leave-one-out" in out
    assert set(json.loads(run("tasks", "--json")[1])) == {"knn", "linear"}


def test_help_loads_no_torch():
    code = "import sys\nfrom pretrain.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
