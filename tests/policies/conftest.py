from tests.rooms import no_gradients, one_thread

__all__ = ["no_gradients", "one_thread"]
