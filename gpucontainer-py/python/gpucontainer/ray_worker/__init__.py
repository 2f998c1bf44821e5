"""The two halves of a Ray worker in a sandbox. Neither imports Ray where :mod:`gpucontainer.ray` was not."""
