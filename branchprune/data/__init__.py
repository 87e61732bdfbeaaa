"""Data modules."""

from branchprune.data.digits import Digits

__all__ = ["Digits"]
