"""Many processes that compute one result: the ranks of an update, what they tell each other, and sharded models."""
