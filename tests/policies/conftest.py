"""What the tests of the policies share with those of the interventions."""

from tests.interventions.conftest import no_gradients, one_thread

__all__ = ["no_gradients", "one_thread"]
