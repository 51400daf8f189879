"""The module that the pool's worker processes import: it registers the scripted verifier.

The test process must not import it. Registration cannot be undone, and other tests print all registered names.
"""

from megatron_prime.rewards import register
from tests.rewards.rewards_doubles import Scripted

register("scripted", Scripted)
