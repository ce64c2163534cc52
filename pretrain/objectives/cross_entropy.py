"""Cross-entropy on the labels, with or without a projector that is thrown away."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from manifests.errors import Refusal
from pretrain.objectives.objective import Logs, Objective, Setting, mean_over_ranks, mlp


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> tuple[Tensor, Logs]:
    """Mean over the batch of -sum_c p_c log softmax(logits)_c, p = (1 - smoothing) one-hot + smoothing / classes.

    logits  (b, classes); labels (b,) int64.    Logs    accuracy: share of rows whose largest logit is the label
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss, {"accuracy": (logits.detach().argmax(1) == labels).float().mean()}


class CrossEntropy(Objective):
    """Classifier, and a projector or none, on the backbone."""

    needs_labels = True

    def __init__(self, backbone: nn.Module, head: nn.Module, smoothing: float) -> None:
        super().__init__(backbone)
        self.head, self.smoothing = head, smoothing

    def forward(self, views: list[Tensor], labels: Tensor, uids: Tensor) -> tuple[Tensor, Logs]:
        loss, logs = cross_entropy_loss(self.head(self.backbone(views[0])), labels, smoothing=self.smoothing)
        return mean_over_ranks(loss, labels.new_full((), len(labels))), logs


def cross_entropy(backbone: nn.Module, setting: Setting, *, projector: bool = False, smoothing: float = 0.0) -> CrossEntropy:
    """Classify: soft-max cross-entropy on the labels; with `projector: true` the rival that every new supervised loss must beat.

    Source      projector: Wang et al., CVPR 2022 (arXiv 2112.00496): an MLP between backbone and classifier, thrown away, keeps within-class variety.
                Plain by default, no smoothing: Kornblith et al., NeurIPS 2021 (arXiv 2010.16402), and smoothing costs transfer
    projector   put linear, batch norm, ReLU, linear (the backbone's width) before the classifier; only the backbone is kept
    smoothing   share of each label spread evenly over all classes, 0 <= smoothing < 1
    Reduction   mean over the batch of all ranks
    Errors      [bad-value] for a smoothing out of range
    """
    if not 0 <= smoothing < 1:
        raise Refusal("bad-value", "objective cross_entropy: smoothing", f"{smoothing!r} is out of range", "it takes a number from 0 to below 1")
    width: int = backbone.width  # type: ignore[assignment]
    classifier = nn.Linear(width, max(setting.num_classes, 1))
    head = nn.Sequential(mlp(width), classifier) if projector else classifier
    return CrossEntropy(backbone, head, smoothing)
