"""LOOK: leave-one-out k-nearest-neighbour supervised pre-training."""

# B batch, Q queue, K neighbours (k, and one place for the nearest positive), D features, T tied rows
import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from manifests.errors import Refusal
from pretrain.objectives.bank import Bank
from pretrain.objectives.objective import Logs, Objective, Setting, full_precision, gather, mean_over_ranks, mlp, unit

NEVER = -math.inf


def look_loss(
    z_BD: Tensor, label_B: Tensor, uid_B: Tensor, queue_QD: Tensor, queue_label_Q: Tensor, queue_uid_Q: Tensor, *, k: int, tau: float
) -> tuple[Tensor, Logs]:
    """Negative log of the weighted vote that the k nearest *other* samples give to the true label, mean over the queries judged.

    L_i = -log( sum_{j in N, y_j = y_i} exp(s_ij / tau) / sum_{j in N} exp(s_ij / tau) ), s cosine, N the k most similar rows of the queue whose uid is not
    uid_i; if none of them carries label y_i, the nearest row that does joins N as number k + 1.

    Guarantee   never NaN: a query for which the queue holds no positive is skipped (zero gradient). k = Q gives supervised NCA; with a uid for each view and
                labels := sample it gives NT-Xent. A tie at rank k goes to the smallest uid. Neighbours are chosen without gradient; it flows through z_BD.
    Source      after Feng et al., LOOK, ICLR 2022 (arXiv 2110.06014). A reconstruction: we had abstract and introduction, which give the aim and the leave-one-out
                vote of the k nearest. The -log of the weighted vote, the queue, the fall-back and all numbers are ours.
    Logs        fallback: share of queries without a positive among the k; positives: mean share of positives among the k; skipped: share of queries without any
                positive in the queue; all_positive: share whose neighbours all agree (no gradient); judged: how many queries the mean is over
    Cost        2 B Q D operations, and one pass over B Q similarities for the choice
    """
    with full_precision(z_BD):
        return _voted(z_BD if z_BD.dtype == torch.float64 else z_BD.float(), label_B, uid_B, queue_QD, queue_label_Q, queue_uid_Q, k=k, tau=tau)


def _voted(
    z_BD: Tensor, label_B: Tensor, uid_B: Tensor, queue_QD: Tensor, queue_label_Q: Tensor, queue_uid_Q: Tensor, *, k: int, tau: float
) -> tuple[Tensor, Logs]:
    with torch.no_grad():
        s_BQ = z_BD.detach().to(queue_QD.dtype) @ queue_QD.T
        _leave_out(s_BQ, uid_B, queue_uid_Q)
        near_BK = nearest(s_BQ, queue_uid_Q, min(k, len(queue_QD)))
        valid_BK = s_BQ.gather(1, near_BK) > NEVER
        same_BK = (queue_label_Q[near_BK] == label_B[:, None]) & valid_BK
        found_B = same_BK.any(1)
        share_B = same_BK.sum(1) / valid_BK.sum(1).clamp(min=1)
        lost_A = (~found_B).nonzero()[:, 0]
        near_BK, valid_BK, same_BK = _append_nearest_positive(s_BQ, label_B, queue_label_Q, queue_uid_Q, near_BK, valid_BK, same_BK, lost_A)
        judged_B = same_BK.any(1)
        some = judged_B if len(lost_A) else slice(None)  # to count the judged would wait for the device once more
    s_BK = _Similarity.apply(z_BD, queue_QD, near_BK, s_BQ.gather(1, near_BK).to(z_BD.dtype)) / tau
    everyone_B = s_BK.masked_fill(~valid_BK, NEVER)[some].logsumexp(1)
    positive_B = s_BK.masked_fill(~same_BK, NEVER)[some].logsumexp(1)
    judged = judged_B.sum()
    loss = (everyone_B - positive_B).sum() / judged.clamp(min=1) + 0 * z_BD.sum()  # the second term keeps the graph where all are skipped
    logs = {
        "fallback": (~found_B).float().mean(),
        "positives": share_B.float().mean(),
        "skipped": (~judged_B).float().mean(),
        "all_positive": (share_B == 1).float().mean(),
        "judged": judged,
    }
    return loss, logs


class _Similarity(torch.autograd.Function):
    """Chosen entries of z @ queue.T, already computed; its backward pass adds B k rows of the queue and never touches the B Q similarities."""

    @staticmethod
    def forward(ctx, z_BD: Tensor, queue_QD: Tensor, near_BK: Tensor, s_BK: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(queue_QD, near_BK)
        return s_BK

    @staticmethod
    def backward(ctx, grad_BK: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def, override]
        queue_QD, near_BK = ctx.saved_tensors
        grad_BD = functional.embedding_bag(near_BK, queue_QD, mode="sum", per_sample_weights=grad_BK.to(queue_QD.dtype))
        return grad_BD.to(grad_BK.dtype), None, None, None


def _leave_out(s_BQ: Tensor, uid_B: Tensor, uid_Q: Tensor) -> None:
    """Set the similarity of a query to every row of its own uid to minus infinity; on a CPU by search, since B Q comparisons would cost a third of the
    product. A GPU compares in less time than the host needs to learn how many hits a search has."""
    if s_BQ.is_cuda:
        s_BQ.masked_fill_(uid_B[:, None] == uid_Q, NEVER)
        return
    sorted_Q, order_Q = uid_Q.sort()
    first_B = torch.searchsorted(sorted_Q, uid_B)
    count_B = torch.searchsorted(sorted_Q, uid_B, right=True) - first_B
    row = torch.repeat_interleave(torch.arange(len(uid_B), device=uid_B.device), count_B)
    place = torch.arange(len(row), device=row.device) - (count_B.cumsum(0) - count_B)[row] + first_B[row]
    s_BQ[row, order_Q[place]] = NEVER


def nearest(s_BQ: Tensor, uid_Q: Tensor, k: int) -> Tensor:
    """(B, k) columns of the k largest values in each row; a tie at rank k goes to the smallest uid, then to the first column.

    The k-th largest of the maxima of g > k groups is a lower bound of the k-th largest value, so a first pass of maxima leaves little more than k
    columns a row to be sorted. (A GPU sorts all: that takes less time than waiting for how many are left.)
    """
    size = s_BQ.shape[1]
    candidate_BM = _candidates(s_BQ, k) if size > 8 * k and size >= 1024 and not s_BQ.is_cuda else None
    value_BM = s_BQ if candidate_BM is None else s_BQ.gather(1, candidate_BM.clamp(min=0)).masked_fill(candidate_BM < 0, NEVER)
    top_BK, place_BK = value_BM.topk(k, dim=1, sorted=False)
    last_B1 = top_BK.amin(1, keepdim=True)
    tied = ((value_BM >= last_B1).sum(1) > k) & (last_B1[:, 0] > NEVER)
    near_BK = place_BK if candidate_BM is None else candidate_BM.gather(1, place_BK).clamp(min=0)
    for row in tied.nonzero()[:, 0].tolist():
        above = (s_BQ[row] > last_B1[row]).nonzero()[:, 0]
        equal = (s_BQ[row] == last_B1[row]).nonzero()[:, 0]
        first = equal[uid_Q[equal].argsort(stable=True)][: k - len(above)]
        near_BK[row] = torch.cat([above, first])
    return near_BK


def _candidates(s_BQ: Tensor, k: int) -> Tensor:
    """(B, M) columns that may be among the k largest, -1 where a row has fewer."""
    rows, size = s_BQ.shape
    groups = 2 ** math.ceil(math.log2(2.5 * k))
    depth = size // groups
    floor_B1 = s_BQ[:, : groups * depth].view(rows, depth, groups).amax(1).topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    row, column = _true_places(s_BQ >= floor_B1)
    count_B = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row), device=row.device) - (count_B.cumsum(0) - count_B)[row]
    candidate_BM = torch.full((rows, int(count_B.max())), -1, device=row.device)
    candidate_BM[row, place] = column
    return candidate_BM


def _true_places(mask_BQ: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of what is true, in order. Few are: eight columns are looked at as one number first, a third of the cost."""
    size = mask_BQ.shape[1]
    if size % 8:
        return mask_BQ.nonzero(as_tuple=True)  # type: ignore[return-value]
    words = mask_BQ.contiguous().view(torch.int64).view(-1)
    some = words.nonzero()[:, 0]
    place, inside = words[some].view(torch.bool).view(-1, 8).nonzero(as_tuple=True)
    flat = some[place] * 8 + inside
    row = flat // size
    return row, flat - row * size


def _append_nearest_positive(
    s_BQ: Tensor, label_B: Tensor, queue_label_Q: Tensor, queue_uid_Q: Tensor, near_BK: Tensor, valid_BK: Tensor, same_BK: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One more place a query: the nearest positive for the queries `row`, which have none yet, else empty."""
    more_B1 = near_BK.new_zeros(len(near_BK), 1)
    has_B1 = torch.zeros_like(more_B1, dtype=torch.bool)
    if len(row):
        positive = s_BQ[row].masked_fill(queue_label_Q != label_B[row, None], NEVER)
        more_B1[row] = nearest(positive, queue_uid_Q, 1)
        has_B1[row] = positive.gather(1, more_B1[row]) > NEVER
    return torch.cat([near_BK, more_B1], 1), torch.cat([valid_BK, has_B1], 1), torch.cat([same_BK, has_B1], 1)


class Look(Objective):
    """Queue, momentum encoder and projector around `look_loss`."""

    num_views = 2
    needs_labels = True
    step: Tensor

    def __init__(self, backbone: nn.Module, projector: nn.Module, width: int, *, k: int, tau: float, queue: int, momentum: float) -> None:
        super().__init__(backbone)
        self.projector = projector
        self.key_encoder = copy.deepcopy(nn.Sequential(backbone, projector)).requires_grad_(False)
        self.bank = Bank(queue, width)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.k, self.tau, self.momentum = k, tau, momentum
        self._taken: int | None = None  # `step` as a plain number: reading the tensor would wait for the device at each step

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._taken = None

    def forward(self, views: list[Tensor], labels: Tensor, uids: Tensor) -> tuple[Tensor, Logs]:
        momentum = self.move_keys()
        with torch.no_grad():  # the key encoder stays in train mode: batch statistics
            key_BD = unit(self.key_encoder(views[1]))
            self.bank.add(gather(key_BD), gather(labels), gather(uids))
        z_BD = unit(self.projector(self.backbone(views[0])))
        loss, logs = look_loss(z_BD, labels, uids, *self.bank.rows(), k=self.k, tau=self.tau)
        judged = logs.pop("judged")
        return mean_over_ranks(loss, judged), {**logs, "momentum": momentum}

    @torch.no_grad()
    def move_keys(self) -> Tensor:
        """key <- m key + (1 - m) query, before the keys are computed; m = min(momentum, (t + 1) / (t + 10)) is returned."""
        taken = torch.tensor(int(self.step) if self._taken is None else self._taken)
        m = ((taken + 1.0) / (taken + 10.0)).clamp(max=self.momentum)
        theirs: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_([*self.key_encoder.parameters()], theirs, float(1 - m))
        self.step += 1
        self._taken = int(taken) + 1
        return m


def look(
    backbone: nn.Module,
    setting: Setting,
    *,
    k: int | None = None,
    tau: float = 0.1,
    queue: int | None = None,
    momentum: float = 0.99,
    projector: bool = True,
    width: int = 128,
) -> Look:
    """Train so that the k nearest other samples vote for the label: labels in, but several modes a class.

    Guarantee   leave-one-out by uid over all views and epochs; the current keys enter the queue before the vote; never NaN (see `look_loss`)
    Source      a reconstruction after abstract and introduction of Feng et al., LOOK, ICLR 2022 (arXiv 2110.06014), which is all we had of it; we found no
                public implementation. The loss (see `look_loss`), queue, momentum encoder, projector and every number below are ours
    k           neighbours that vote, 2 <= k <= queue; default min(200, queue / (2 classes)), at least 2
    tau         temperature of the vote's weights exp(cosine / tau)
    queue       how many keys are remembered; default the largest power of two <= min(65,536, half the smallest arm)
    momentum    of the key encoder; ramped as min(momentum, (t + 1) / (t + 10)); keys use batch statistics (train mode)
    projector   vote on a two-layer projection, thrown away after training; false: on the backbone's own features
    width       dimensions of the projection
    Cost        one step of cross-entropy, one forward pass, 2 * batch * queue * width operations
    Errors      [bad-value] for k, tau, queue, momentum or width out of range
    """
    default_queue, default_k = look_size(setting.smallest_arm, setting.num_classes)
    queue = default_queue if queue is None else queue
    k = (default_k if queue == default_queue else usual_k(queue, setting.num_classes)) if k is None else k
    for name, value, is_fine, allowed in (
        ("queue", queue, queue >= 2, "at least 2"),
        ("k", k, 2 <= k <= queue, f"from 2 (one neighbour gives no gradient) to the queue's {queue}"),
        ("tau", tau, tau > 0, "above 0"),
        ("momentum", momentum, 0 <= momentum <= 1, "from 0 to 1"),
        ("width", width, width >= 1, "at least 1"),
    ):
        if not is_fine:
            raise Refusal("bad-value", f"objective look: {name}", f"{value!r} is out of range", f"it takes a number {allowed}")
    features: int = backbone.width  # type: ignore[assignment]
    head = mlp(features, width) if projector else nn.Identity()
    return Look(backbone, head, width if projector else features, k=k, tau=tau, queue=queue, momentum=momentum)


def look_size(smallest_arm: int, num_classes: int) -> tuple[int, int]:
    """(queue, k) by default: the same for all arms of a comparison, since they follow from the smallest one."""
    queue = 2 ** int(math.log2(max(min(65_536, smallest_arm // 2), 2)))
    return queue, usual_k(queue, num_classes)


def usual_k(queue: int, num_classes: int) -> int:
    """Neighbours that vote by default: half of a class's share of the queue, from 2 to 200."""
    return max(2, min(200, queue // (2 * max(num_classes, 1))))
