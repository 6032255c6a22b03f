"""Augmentation on the device: operations on one image, and the policies that make views."""
