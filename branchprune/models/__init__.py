"""Models of the paper and of its outlook, with their widths as arguments."""

from branchprune.models.autoencoder import Autoencoder
from branchprune.models.dcgan import DCGAN, Discriminator, Generator
from branchprune.models.resnet import ResNet
from branchprune.models.unet import UNet
from branchprune.models.vgg import VGG

__all__ = ["DCGAN", "VGG", "Autoencoder", "Discriminator", "Generator", "ResNet", "UNet"]
