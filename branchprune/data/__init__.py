"""Data modules, and a data set that is drawn."""

from branchprune.data.classification import CIFAR10, ImageFolder
from branchprune.data.digits import Digits
from branchprune.data.frames import Frames
from branchprune.data.memory import InMemory
from branchprune.data.photographs import Photographs
from branchprune.data.shapes import draw_shapes

__all__ = [
    "CIFAR10",
    "Digits",
    "Frames",
    "ImageFolder",
    "InMemory",
    "Photographs",
    "draw_shapes",
]
