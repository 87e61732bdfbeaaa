"""Models of the paper, with their widths as arguments."""

from branchprune.models.autoencoder import Autoencoder
from branchprune.models.vgg import VGG

__all__ = ["VGG", "Autoencoder"]
