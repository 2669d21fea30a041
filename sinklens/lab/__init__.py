"""Small models trained to show how attention sinks emerge, and the tasks they are trained on."""
