from tests.rooms import no_gradients

__all__ = ["no_gradients"]
