"""manifests.vectors.forecast: counts, and the refusal with the number that would work. Seconds are judged in the benchmarks."""

import pytest

from manifests.errors import Refusal
from manifests.vectors import forecast
from manifests.vectors.forecast import (
    Forecast,
    Rates,
    Size,
    bit_codes,
    clustered,
    copies,
    cover,
    facility,
    farthest,
    in_turn,
    inside_clusters,
    linear,
    measured,
    measured_on,
    near_hashes,
    neighbours,
    pairs,
    require,
    size,
    two_looks,
)


def test_seconds_are_counts_over_rates():
    rates = Rates(multiply_adds=10.0, touched=5.0, bytes=1.0)
    assert Forecast(100.0, 10.0, 0).seconds(rates) == 12.0
    assert all(rate > 1e6 for rate in (measured().multiply_adds, measured().touched, measured().bytes))


def test_what_needs_no_rates_measures_none(monkeypatch):
    monkeypatch.setattr(forecast, "measured_on", lambda device: pytest.fail("nobody asked how fast this machine is"))
    assert linear(Size(1_000_000, [], 0)) == Forecast(0, 0, 200_000_000, 2.0)
    assert near_hashes(1000, 8000, 8).seconds() > linear(Size(1000, [], 0)).seconds() > 0
    assert two_looks(1000, 64, True, 3.0).seconds() > 3


def test_pieces_of_work_add_up():
    rates, one, other = Rates(10.0, 5.0, 1.0), Forecast(100.0, 10.0, 7, 3.0), Forecast(50.0, 0.0, 9)
    both = in_turn([one, other])
    assert both.seconds(rates) == one.seconds(rates) + other.seconds(rates) == 15.0 + 5.0
    assert (both.memory, in_turn([]).memory, in_turn([]).seconds()) == (9, 0, 0.0)
    assert one.times(3).seconds(rates) == 45.0 and one.times(3).memory == 7


def test_work_goes_by_the_rates_of_its_device(monkeypatch):
    monkeypatch.setattr(forecast, "measured_on", {"cpu": Rates(1.0, 1.0, 1.0), "there": Rates(10.0, 10.0, 1.0)}.__getitem__)
    here, there = pairs(5000, 64, 16, 1 << 30), pairs(5000, 64, 16, 1 << 30, "there")
    assert here.seconds() == pytest.approx(10 * there.seconds()) and here.memory == there.memory


def test_copies_count_their_searches_of_hashes():
    none, two = (copies(100_000, [512], 20, 4 << 30, count, 10) for count in (0, 2))
    assert two.others - none.others == pytest.approx(2 * (near_hashes(100_000, 800_000, 10).others - 0.2))
    assert two.memory == none.memory > bit_codes(100_000, 800_000) and none.others == pytest.approx(100_000 * 20 * 3e-3)


def test_a_device_has_rates_of_its_own(monkeypatch):
    monkeypatch.setattr(forecast, "TILE", 64)
    monkeypatch.setattr(forecast, "WIDE_THERE", 128)
    there = measured_on("cpu:0")
    assert there.multiply_adds > 1e6 and there.touched > 1e6 and measured_on("cpu") is measured()


@pytest.mark.parametrize(
    "work",
    [lambda n: neighbours(n, n, 64, 10), lambda n: pairs(n, 64, 16, 1 << 30), lambda n: farthest(n, n // 10, 64), lambda n: facility(n, n // 10, 64, 4 * n * n),
     lambda n: cover(n, n // 3, 64, 1 << 30)],
)  # fmt: skip
def test_twice_the_rows_are_four_times_the_products(work):
    small, large = work(100_000), work(200_000)
    assert large.multiply_adds / small.multiply_adds == pytest.approx(4, rel=0.05)
    assert large.memory >= small.memory
    assert 2.5 < large.seconds(Rates(1e10, 1e9, 1e9)) / small.seconds(Rates(1e10, 1e9, 1e9)) < 5


def test_two_hundred_thousand_fit_two_gibibytes():
    assert pairs(200_000, 512, 16, 2 << 30).memory < 2 << 30
    require("dedup.all_pairs", pairs(200_000, 512, 16, 2 << 30), 2 << 30)


def test_the_refusal_names_what_would_work():
    with pytest.raises(Refusal, match=r"select.facility_location: needs .* GiB; --memory allows 1.0 GiB. Give --memory \d+GiB") as refused:
        require("select.facility_location", facility(10_000_000, 1000, 512, 1 << 30), 1 << 30)
    enough = int(str(refused.value).split("Give --memory ")[1].split("GiB")[0]) << 30
    assert refused.value.exit_code == 5
    require("select.facility_location", Forecast(0, 0, facility(10_000_000, 1000, 512, 1 << 30).memory), enough)


@pytest.mark.parametrize("rows", [1_000, 50_000, 3_000_000])
@pytest.mark.parametrize("asked", [1 << 20, 100 << 20, 1 << 30, 20 << 30])
def test_the_memory_that_facility_location_asks_for_suffices(rows, asked):
    needed = facility(rows, 100, 64, asked).memory
    assert facility(rows, 100, 64, needed).memory <= needed
    assert needed <= asked or facility(rows, 100, 64, 0).memory > asked  # its lists are never what does not fit


def test_looks_count_what_they_hold():
    """What `Looks.of`, `grouped` and `candidates` held at their peak (tracemalloc; rows, bytes of a hash, turned) of pictures that all have a border."""
    measured_mib = {
        (100_000, 64, True): 186,
        (400_000, 64, True): 538,
        (400_000, 64, False): 239,
        (100_000, 256, True): 313,
        (400_000, 256, True): 1180,
        (400_000, 256, False): 484,
    }
    for (rows, width, turned), mib in measured_mib.items():
        assert 1 <= two_looks(rows, width, turned, 0.0).memory / (mib << 20) <= 1.5


def test_clusters_count_what_they_hold():
    """Memory that was measured of `dedup.semantic` and `reduce.density` (`bench_semantic.py`): never more than the forecast, and no less than two thirds of it."""
    measured_mib = {
        (50_000, 512, 224): 105,
        (200_000, 512, 447): 130,
        (1_000_000, 512, 1000): 304,
        (100_000, 128, 316): 53,
        (10_000, 128, 100): 21,
    }
    for (rows, dim, clusters), mib in measured_mib.items():
        assert 1 <= inside_clusters(rows, dim, clusters).memory / (mib << 20) <= 1.5
    for (rows, dim, clusters), mib in {(50_000, 512, 100): 92, (200_000, 512, 100): 127, (100_000, 128, 100): 36}.items():
        assert 1 <= clustered(rows, dim, clusters).memory / (mib << 20) <= 1.5
    for (rows, dim, clusters), mib in {(20_000, 512, 141): 88, (50_000, 512, 224): 107}.items():
        assert 1 <= inside_clusters(rows, dim, clusters, 100, 256, visits=0).memory / (mib << 20) <= 1.5


def test_clusters_count_their_seconds():
    """CPU seconds of `dedup.semantic` at the rates of the same minute, and the visits a row that it made (`bench_growth.py`, `bench_semantic.py`)."""
    rates = Rates(63e9, 4.5e9, 15e9)
    for (rows, dim, visits), seconds in {
        (30_000, 128, 0.44): 0.3,
        (100_000, 128, 0.15): 0.86,
        (1_000_000, 128, 2.97): 25.1,
        (200_000, 512, 1.07): 6.96,
    }.items():
        assert 1 / 1.5 <= inside_clusters(rows, dim, None, visits=visits).seconds(rates) / seconds <= 1.5


def test_facility_location_counts_what_it_holds():
    """Memory that was measured (`bench_facility_location.py`; rows, picks, values): never more than the forecast, and no less than two thirds of it."""
    measured_mib = {
        (5_000, 500, 64): 32,
        (10_000, 20, 64): 109,
        (10_000, 1_000, 64): 109,
        (10_000, 1_000, 512): 177,
        (20_000, 20, 128): 412,
        (20_000, 2_000, 128): 411,
        (30_000, 3_000, 64): 889,
    }
    for (rows, kept, dim), mib in measured_mib.items():
        assert 1 <= facility(rows, kept, dim, 4 << 30).memory / (mib << 20) <= 1.5


def test_facility_location_multiplies_more_where_lists_do_not_fit():
    """Passes of all pairs that were counted at 6,000 rows: 2.4 up to 32 picks, 6.0 up to 512 without lists."""
    passes = [facility(6_000, kept, 64, 0).multiply_adds / (6_000**2 * 64) for kept in (2, 8, 32, 512)]
    assert passes == pytest.approx([0.5, 1.55, 2.4, 6.0], rel=0.1)
    assert facility(50_000, 5_000, 256, 4 << 30).multiply_adds < 3.5 * 50_000**2 * 256 < facility(50_000, 5_000, 256, 0).multiply_adds


def test_size():
    assert size(3 << 20) == "3 MiB" and size(1536 << 20) == "1.5 GiB"
