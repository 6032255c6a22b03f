"""The sections of an evaluation card, by name; each is a function of one probed network.

A section returns plain JSON. What it predicts for each image it hands to `Predictions`, so that
runs and conditions can be compared over the same images.
"""
