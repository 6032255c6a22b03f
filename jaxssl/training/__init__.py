"""The state of training, its step, its optimizers and its loop."""
