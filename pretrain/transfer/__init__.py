"""What tests transfer: one file a probe. `transfer` runs them on a checkpoint; importing this package loads no torch."""

from pretrain.transfer.transfer import transfer

__all__ = ["transfer"]
