"""Data modules."""

from branchprune.data.classification import CIFAR10, ImageFolder
from branchprune.data.digits import Digits
from branchprune.data.frames import Frames
from branchprune.data.memory import InMemory
from branchprune.data.photographs import Photographs

__all__ = ["CIFAR10", "Digits", "Frames", "ImageFolder", "InMemory", "Photographs"]
