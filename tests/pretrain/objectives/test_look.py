import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from manifests.errors import Refusal
from pretrain.objectives.look import look, look_loss, look_size, nearest
from pretrain.objectives.objective import Setting
from pretrain.objectives.simclr import simclr_loss
from tests.pretrain.objectives.ranks import TinyBackbone, batch, made

QUARTERS = [list(v) for v in np.eye(4)] + [[a / 2, b / 2, c / 2, d / 2] for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)]


def at(*angles: float) -> torch.Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)


def neighbours(s: np.ndarray, label: int, uid: int, labels: np.ndarray, uids: np.ndarray, k: int) -> list[int]:
    """The k most similar other samples, a tie to the smaller uid and then the first place; and the nearest positive if none is among them."""
    order = sorted((j for j in range(len(s)) if uids[j] != uid), key=lambda j: (-s[j], uids[j], j))
    near = order[:k]
    if not any(labels[j] == label for j in near):
        near += [j for j in order if labels[j] == label][:1]
    return near


def slow(z, label, uid, queue, labels, uids, k, tau):
    """(loss, gradient by z, judged queries), by the definition in float64."""
    losses, gradient = [], np.zeros_like(z)
    for i in range(len(z)):
        s = queue @ z[i]
        near = neighbours(s, label[i], uid[i], labels, uids, k)
        positive = [j for j in near if labels[j] == label[i]]
        if not positive:
            continue
        w = {j: math.exp(s[j] / tau) for j in near}
        everyone, mine = sum(w.values()), sum(w[j] for j in positive)
        losses.append(-math.log(mine / everyone))
        for j in near:
            gradient[i] += queue[j] * (w[j] / everyone - (w[j] / mine if j in positive else 0)) / tau
    return (np.mean(losses) if losses else 0.0), gradient / max(len(losses), 1), len(losses)


@st.composite
def problems(draw):
    """Exact unit vectors full of ties, or random ones; few labels and uids, so that own views and missing positives occur."""
    queries, size = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        rows = draw(st.lists(st.sampled_from(QUARTERS), min_size=queries + size, max_size=queries + size))
        z = np.array(rows)
    else:
        z = np.random.default_rng(draw(st.integers(0, 10_000))).normal(size=(queries + size, 4))
        z /= np.linalg.norm(z, axis=1, keepdims=True)
    label = np.array(draw(st.lists(st.integers(0, 2), min_size=queries + size, max_size=queries + size)))
    uid = np.array(draw(st.lists(st.integers(-3, 3), min_size=queries + size, max_size=queries + size)))
    return (
        z[:queries],
        label[:queries],
        uid[:queries],
        z[queries:],
        label[queries:],
        uid[queries:],
        draw(st.integers(1, size)),
        draw(st.sampled_from([0.1, 0.5, 2.0])),
    )


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


@settings(max_examples=250, deadline=None)
@given(problem=problems())
def test_value_gradient_ties_and_leave_one_out_are_the_definition(problem):
    *arrays, k, tau = problem
    value, gradient, judged = slow(*arrays, k, tau)
    z, *rest = tensors(*arrays)
    z.requires_grad_()

    loss, logs = look_loss(z, *rest, k=k, tau=tau)
    loss.backward()

    assert loss.item() == pytest.approx(value, abs=1e-10)
    np.testing.assert_allclose(z.grad, gradient, atol=1e-10)
    assert logs["judged"] == judged
    assert logs["skipped"].item() == pytest.approx(1 - judged / len(z))
    found = [neighbours(arrays[3] @ arrays[0][i], arrays[1][i], arrays[2][i], arrays[4], arrays[5], k) for i in range(len(z))]
    among = [[arrays[4][j] == arrays[1][i] for j in near[:k]] for i, near in enumerate(found)]
    assert logs["fallback"].item() == pytest.approx(np.mean([not any(row) for row in among]))
    assert logs["positives"].item() == pytest.approx(np.mean([np.mean(row) if row else 0 for row in among]))
    assert logs["all_positive"].item() == pytest.approx(np.mean([bool(row) and all(row) for row in among]))


@pytest.mark.parametrize(("k", "expected"), [(1, 0.0), (2, 0.411699), (3, 0.387810)])
def test_the_published_oracle(k, expected):
    same, other = 0, 1
    loss, _ = look_loss(
        at(0), torch.tensor([same]), torch.tensor([9]), at(0.5, 1.0, 2.0), torch.tensor([same, other, same]), torch.tensor([1, 2, 3]), k=k, tau=0.5
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.sampled_from([0.1, 1.0]))
def test_all_neighbours_is_nca(seed, tau):
    random = np.random.default_rng(seed)
    z, queue = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (random.normal(size=(5, 3)), random.normal(size=(20, 3))))
    label, labels = np.arange(5) % 2, np.arange(20) % 2
    w = np.exp(z @ queue.T / tau)
    w[np.arange(5), np.arange(5)] = 0  # the query's own slot
    nca = np.mean(-np.log((w * (labels == label[:, None])).sum(1) / w.sum(1)))

    loss, _ = look_loss(*tensors(z, label, np.arange(5), queue, labels, np.arange(20)), k=20, tau=tau)

    assert loss.item() == pytest.approx(nca, abs=1e-12)


def test_all_neighbours_with_samples_as_labels_is_nt_xent():
    random = torch.Generator().manual_seed(0)
    one, two = (normalize(torch.randn(6, 5, generator=random, dtype=torch.float64), dim=1) for _ in range(2))
    z, sample, view = torch.cat([one, two]), torch.arange(6).repeat(2), torch.arange(12)  # a uid a view: the other view may vote

    loss, _ = look_loss(z, sample, view, z, sample, view, k=12, tau=0.3)

    assert loss.item() == pytest.approx(simclr_loss(one, two, tau=0.3)[0].item(), abs=1e-12)


def test_the_own_views_never_vote():
    """Planted: the query itself and another view of it, nearer than all others and of the right label."""
    queue, labels = at(0.0, 0.01, 0.5, 1.0, 2.0), torch.tensor([0, 0, 0, 1, 0])
    loss, _ = look_loss(at(0), torch.tensor([0]), torch.tensor([7]), queue, labels, torch.tensor([7, 7, 1, 2, 3]), k=2, tau=0.5)
    assert loss.item() == pytest.approx(0.411699, abs=1e-6)


def test_only_positive_neighbours_give_no_gradient_and_none_at_all_is_skipped():
    z = at(0.0, 0.0).requires_grad_()
    loss, logs = look_loss(z, torch.tensor([0, 5]), torch.tensor([8, 9]), at(0.5, 1.0), torch.tensor([0, 0]), torch.tensor([1, 2]), k=2, tau=0.5)
    loss.backward()
    assert loss == 0 and logs["judged"] == 1 and logs["skipped"] == 0.5 and logs["all_positive"] == 0.5
    assert torch.equal(z.grad, torch.zeros_like(z))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 60), levels=st.sampled_from([3, 50, 10**6]), hidden=st.booleans())
def test_nearest_with_its_first_pass_is_a_full_sort(seed, k, levels, hidden):
    """A queue long enough for the pass over group maxima, with many ties, and rows of which most are left out."""
    random = np.random.default_rng(seed)
    s = random.integers(0, levels, (3, 1104)).astype(np.float32)
    if hidden:
        s[0, random.random(1104) < 0.99] = -np.inf
    uid = random.integers(0, 400, 1104)

    found = nearest(torch.from_numpy(s), torch.from_numpy(uid), k)

    for row in range(3):
        order = np.lexsort((np.arange(1104), uid, -s[row]))[:k]
        real = [j for j in order if s[row, j] > -np.inf]
        assert sorted(j for j in found[row].tolist() if s[row, j] > -np.inf) == sorted(real)


def test_keys_move_before_they_are_computed_and_the_ramp_starts_low():
    objective = made("look", {"k": 2, "queue": 8, "momentum": 0.99})
    query, key = objective.backbone.net[1].weight, objective.key_encoder[0].net[1].weight
    with torch.no_grad():
        query.add_(1.0)
    for step in range(3):
        before = key.clone()
        m = objective.move_keys()
        assert m.item() == pytest.approx((step + 1) / (step + 10))
        torch.testing.assert_close(key, m * before + (1 - m) * query, atol=1e-6, rtol=1e-6)
    objective.load_state_dict({**objective.state_dict(), "step": torch.tensor(10**6)})
    assert objective.move_keys().item() == pytest.approx(0.99)
    assert not any(p.requires_grad for p in objective.key_encoder.parameters())


def test_current_keys_are_in_the_queue_before_the_vote():
    objective = made("look", {"k": 2, "queue": 64})
    views, labels, _ = batch(0)
    loss, logs = objective(views, labels, torch.arange(16))
    assert len(objective.bank) == 16 and loss > 0
    assert logs["skipped"] == 1 / 16  # an empty queue would have skipped every query, and not only the one that is alone in its class
    assert set(logs) == {"fallback", "positives", "skipped", "all_positive", "momentum"}


def test_keys_use_batch_statistics():
    objective = look(TinyBackbone(), Setting(3, 200, 10, 16), k=2, queue=64)
    views, labels, uids = batch(0)
    objective([v.float() for v in views], labels, uids)
    assert objective.key_encoder[1][1].training
    assert objective.key_encoder[1][1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("smallest_arm", "num_classes", "expected"),
    [(10**9, 10, (65_536, 200)), (6_000, 10, (2048, 102)), (8_192, 10, (4096, 200)), (100, 10, (32, 2)), (3, 2, (2, 2)), (50_000, 100, (16_384, 81))],
)
def test_sizes_follow_from_the_smallest_arm(smallest_arm, num_classes, expected):
    assert look_size(smallest_arm, num_classes) == expected
    objective = look(TinyBackbone(), Setting(num_classes, smallest_arm, 10, 16))
    assert (objective.bank.size, objective.k) == expected


@pytest.mark.parametrize("given", [{"k": 1}, {"k": 65, "queue": 64}, {"tau": 0.0}, {"momentum": 1.5}, {"queue": 1}, {"width": 0}])
def test_values_out_of_range_are_refused(given):
    with pytest.raises(Refusal, match=r"out of range.*\[bad-value\]"):
        look(TinyBackbone(), Setting(3, 200, 10, 16), **given)


def test_without_a_projector_the_vote_is_on_the_backbones_features():
    objective = look(TinyBackbone(), Setting(3, 200, 10, 16), projector=False, k=4, queue=64)
    views, labels, uids = batch(0)
    objective([v.float() for v in views], labels, uids)[0].backward()
    assert objective.bank.z.shape == (64, TinyBackbone.width)
    assert {name.split(".")[0] for name, p in objective.named_parameters() if p.requires_grad} == {"backbone"}
    assert look(TinyBackbone(), Setting(4, 200, 10, 16), queue=64).k == 8  # k follows the queue that is given


def test_half_precision_around_it_changes_no_bit():
    random = torch.Generator().manual_seed(0)
    z, queue = (normalize(torch.randn(n, 32, generator=random), dim=1) for n in (16, 256))
    labels, uids = torch.randint(0, 4, (272,), generator=random), torch.arange(272)
    given = (z, labels[:16], uids[:16], queue, labels[16:], uids[16:])
    wanted = look_loss(*given, k=8, tau=0.1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert look_loss(*given, k=8, tau=0.1)[0].equal(wanted)
        assert look_loss(z.bfloat16(), *given[1:], k=8, tau=0.1)[0].dtype == torch.float32
