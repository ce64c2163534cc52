"""SimCLR: two views of a sample find each other among all others of the batch."""

# B batch of this rank, N batch of all ranks, D features
import torch
from torch import Tensor, nn
from torch.nn import functional

from manifests.errors import Refusal
from pretrain.objectives.objective import Logs, Objective, Setting, full_precision, gather_with_gradient, mlp, num_ranks, rank, unit


def simclr_loss(one_BD: Tensor, two_BD: Tensor, *, tau: float) -> tuple[Tensor, Logs]:
    """NT-Xent: mean over all 2 B views of -log( exp(s(i, j(i)) / tau) / sum_{a != i} exp(s(i, a) / tau) ), s cosine.

    Reduction   the *mean* of the 2 B terms, as the paper writes it. The authors' code returns twice this value (a mean for each view, summed): divide its
                learning rates accordingly.
    Ranks       candidates are the views of all ranks, gathered with gradient; the average over ranks is the loss of the whole batch
    one_BD, two_BD   unit norm; row b of both is the same sample
    Logs        matched: share of views whose nearest other view is their own
    """
    with full_precision(one_BD):
        wide = torch.float64 if one_BD.dtype == torch.float64 else torch.float32
        return _matched(one_BD.to(wide), two_BD.to(wide), tau)


def _matched(one_BD: Tensor, two_BD: Tensor, tau: float) -> tuple[Tensor, Logs]:
    size = len(one_BD)
    z_all = torch.cat([gather_with_gradient(one_BD), gather_with_gradient(two_BD)])
    batch = size * num_ranks()
    mine = torch.arange(size, device=one_BD.device) + size * rank()
    anchor = torch.cat([mine, mine + batch])
    s = torch.cat([one_BD, two_BD]) @ z_all.T / tau
    s = s.scatter(1, anchor[:, None], -torch.inf)
    target = torch.cat([mine + batch, mine])
    return functional.cross_entropy(s, target), {"matched": (s.detach().argmax(1) == target).float().mean()}


class SimCLR(Objective):
    """Projector around `simclr_loss`; no memory."""

    num_views = 2

    def __init__(self, backbone: nn.Module, projector: nn.Module, tau: float) -> None:
        super().__init__(backbone)
        self.projector, self.tau = projector, tau

    def forward(self, views: list[Tensor], labels: Tensor, uids: Tensor) -> tuple[Tensor, Logs]:
        z = unit(self.projector(self.backbone(torch.cat(views))))
        one, two = z.chunk(2)
        return simclr_loss(one, two, tau=self.tau)


def simclr(backbone: nn.Module, setting: Setting, *, tau: float = 0.2, width: int = 128) -> SimCLR:
    """Tell each sample's two views from all other samples of the batch; needs no labels.

    Source      Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), equation 1; two-layer projector. Their tau: 0.1 at batch 4,096, 0.5 on CIFAR-10
    tau         temperature of the soft-max over cosines; small batches want it larger
    width       dimensions of the projection, thrown away after training
    Reduction   mean over the 2 * batch views (see `simclr_loss`); both views pass the backbone in one batch (shared batch statistics)
    Cost        two forward and backward passes, (2 batch)^2 * width operations
    Errors      [bad-value] for a tau that is not above 0, a width below 1
    """
    if tau <= 0:
        raise Refusal("bad-value", "objective simclr: tau", f"{tau!r} is out of range", "it takes a number above 0")
    if width < 1:
        raise Refusal("bad-value", "objective simclr: width", f"{width!r} is out of range", "it takes a whole number from 1")
    features: int = backbone.width  # type: ignore[assignment]
    return SimCLR(backbone, mlp(features, width), tau)
