"""Computation reallocation for object detection (CR-NAS, ICLR 2020) in JAX and Flax."""

__version__ = "0.1.0"
