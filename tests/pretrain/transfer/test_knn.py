import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.transfer.features import Features
from pretrain.transfer.knn import knn, neighbours, unit, votes

QUARTERS = np.array([list(v) for v in np.eye(4)] + [[a / 2, b / 2, c / 2, d / 2] for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)])


def made(z, label) -> Features:
    return Features(np.asarray(z, np.float32), np.asarray(label, np.int64), np.array([f"{i:032x}" for i in range(len(label))]))


def slow(train: Features, test: Features, k: int, temperature: float) -> list[int]:
    """The predicted class of every test row, by the definition."""
    found = []
    for q in unit(test.z):
        s = [float(np.dot(q, x)) for x in unit(train.z)]
        near = sorted(range(len(s)), key=lambda j: (-s[j], train.uid[j]))[:k]
        votes: dict[int, float] = {}
        for j in near:
            votes[int(train.label[j])] = votes.get(int(train.label[j]), 0) + math.exp((s[j] - s[near[0]]) / temperature)
        top = max(votes.values())
        found.append(min(c for c, v in votes.items() if v >= top - 1e-12))
    return found


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=st.integers(2, 40), m=st.integers(1, 6), ties=st.booleans(), temperature=st.sampled_from([0.07, 1.0, 1e6]))
def test_the_vote_is_the_definition_to_the_last_tie(data, n, m, ties, temperature):
    seed = data.draw(st.integers(0, 10_000))
    random = np.random.default_rng(seed)
    z = QUARTERS[random.integers(0, len(QUARTERS), n + m)] if ties else random.normal(size=(n + m, 4))
    train, test = made(z[:n], random.integers(0, 3, n)), made(z[n:], random.integers(0, 3, m))
    k = data.draw(st.integers(1, n))

    scores = knn(train, test, k=[k] if k < n else [1], temperature=temperature)

    right = np.array(slow(train, test, k if k < n else 1, temperature)) == test.label
    assert scores.value.tolist() == right.astype(float).tolist()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 30))
def test_many_equal_neighbours_are_taken_by_uid_whatever_float32_proposes(seed, k):
    """More rows tie at rank k than the spare places hold."""
    random = np.random.default_rng(seed)
    train = made(QUARTERS[random.integers(0, len(QUARTERS), 400)], random.integers(0, 5, 400))
    test = made(QUARTERS, np.zeros(len(QUARTERS)))
    near, s = neighbours(train, test, [k])
    for i, q in enumerate(QUARTERS):
        cosine = QUARTERS_DOT(train, q)
        order = sorted(range(400), key=lambda j: (-cosine[j], j))[:k]
        assert sorted(near[i].tolist()) == sorted(order)
        np.testing.assert_allclose(np.sort(s[i]), np.sort(cosine[order]), atol=1e-6)


def QUARTERS_DOT(train: Features, q: np.ndarray) -> np.ndarray:
    return np.round(unit(train.z) @ q, 9)


def test_the_order_of_the_training_rows_never_matters():
    random = np.random.default_rng(1)
    z, label = random.normal(size=(300, 8)), random.integers(0, 4, 300)
    train, test = made(z, label), made(random.normal(size=(50, 8)), random.integers(0, 4, 50))
    blocks = np.concatenate([neighbours(train, test.take(np.array([i])), [5, 20])[0] for i in range(50)])
    whole = neighbours(train, test, [5, 20])[0]
    for k in (5, 20):
        assert np.array_equal(np.sort(whole[:, :k]), np.sort(blocks[:, :k]))


@pytest.mark.parametrize(("temperature", "share"), [(0.07, 0.691), (0.1, 0.588), (1.0, 0.357)])
def test_the_published_vote(temperature, share):
    s, label = np.array([[0.9, 0.8, 0.79]]), np.array([[0, 1, 1]])
    found = votes(s, label, 2, temperature)
    assert found[0].tolist() == pytest.approx([share, 1 - share], abs=1e-3)


def test_all_neighbours_at_a_high_temperature_give_the_commonest_class():
    random = np.random.default_rng(0)
    train = made(random.normal(size=(50, 4)), [1] * 30 + [0] * 20)
    test = made(random.normal(size=(20, 4)), [1] * 20)
    assert knn(train, test, k=[49], temperature=1e9).value.all()


def test_k_is_chosen_on_validation_and_never_by_test_labels():
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 400)
    z = np.stack([np.where(label, 1.0, -1.0) + random.normal(0, 1.2, 400), np.full(400, 2.0)], 1)
    train, test = made(z[:300], label[:300]), made(z[300:], label[300:])
    one = knn(train, test)
    other = knn(train, Features(test.z, 1 - test.label, test.uid))
    assert one.chosen == other.chosen and one.chosen["k"] in (10, 20, 50, 100, 200)
    assert (one.value == 1 - other.value).all()
    fit, choose = train.halves()
    assert len(choose) == 60 and len(set(fit) & set(choose)) == 0 and len(fit) == 240
    assert abs(train.label[choose].mean() - train.label.mean()) < 0.01
    again = made(z[:300], label[:300]).halves()
    assert np.array_equal(again[1], choose)


def test_a_zero_vector_and_a_tiny_training_set_do_no_harm():
    train, test = made([[0, 0], [1, 0]], [0, 1]), made([[1, 0], [0, 0]], [1, 0])
    assert knn(train, test).value.tolist() == [1.0, 1.0]
